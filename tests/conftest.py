"""Fixtures shared by all tests: one tiny random model of each family."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from models import FAMILIES, padded_batch
from rasa_moe.moe import MoeMap, discover

transformers_logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """Give every test the same random state, and one thread, so that sums are added in one order."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> PreTrainedModel:
    return FAMILIES[family]()


@pytest.fixture
def moe(model: PreTrainedModel) -> MoeMap:
    return discover(model)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return padded_batch()

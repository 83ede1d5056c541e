"""A tiny model and its map, for tests of training."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from rasa_moe.moe import MoeMap, discover
from unit.tiny import tiny_model


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture
def moe(model: PreTrainedModel) -> MoeMap:
    return discover(model)

"""A tiny random model that knows the testbed's words, and a job on a few made-up pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from models import FAMILIES
from rasa_moe.align.rivals import Job
from rasa_moe.collect.stage import RetainRow
from rasa_moe.config import Config, load_config
from rasa_moe.data.rows import Pair, PromptRow
from rasa_moe.moe import discover
from rasa_moe.testbed.rows import testbed_rows as prompt_rows
from rasa_moe.testbed.tokens import build_tokenizer

REFUSAL = "sorry, i can't help with that."
TRAINED_FAMILY = "nested_story"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture
def make_job(tokenizer: Any) -> Callable[..., Job]:
    """Return a maker of jobs: `make_job("align.batch_size=2", family="olmoe")`."""

    def make(*overrides: str, family: str = "olmoe", num_pairs: int = 4, dtype: Any = None) -> Job:
        model = FAMILIES[family](vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        if dtype is not None:
            model = model.to(dtype)
        pairs, retain = _data(num_pairs)
        return Job(
            model=model,
            tokenizer=tokenizer,
            moe=discover(model),
            pairs=pairs,
            retain=retain,
            config=_config(overrides),
        )

    return make


def _config(overrides: tuple[str, ...]) -> Config:
    return load_config(None, ["align.batch_size=2", "align.rounds=1", "detect.budget=3", *overrides])


def _data(num_pairs: int) -> tuple[list[Pair], list[RetainRow]]:
    rows: dict[tuple[str, str], PromptRow] = {
        (row.family, row.goal): row for row in prompt_rows() if row.kind in ("harmful", "harmless")
    }
    harmful = [goal for (family, goal), row in rows.items() if family == "plain" and row.kind == "harmful"]
    harmless = [goal for (family, goal), row in rows.items() if family == "plain" and row.kind == "harmless"]
    pairs = [
        Pair(
            goal=goal,
            family=TRAINED_FAMILY,
            jailbreak=rows[TRAINED_FAMILY, goal].messages,
            anchor=rows["plain", goal].messages,
            jailbreak_answer=f"{', then '.join(rows['plain', goal].reference)}.",
            anchor_answer=REFUSAL,
        )
        for goal in harmful[:num_pairs]
    ]
    retain = [
        RetainRow(
            kind="harmless",
            family="plain",
            messages=rows["plain", goal].messages,
            answer=f"{', then '.join(rows['plain', goal].reference)}.",
        )
        for goal in harmless[:num_pairs]
    ]
    return pairs, retain

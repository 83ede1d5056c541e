"""Answers to plain requests are begun with the base model's own harmful words, and give none of them away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rasa_moe.config import Config
from rasa_moe.data.chats import encode_chat
from rasa_moe.evaluate.suites import Suite
from rasa_moe.judges import get_judge
from rasa_moe.reproduce.begun import KIND, TOKENS, begin_plain_requests
from rasa_moe.reproduce.cells import Cell, suites_of
from rasa_moe.reproduce.loading import loaded
from rasa_moe.reproduce.results import MEASURES

MODEL = "testbed/olmoe"
JUDGE = get_judge("exact")
CONFIG = Config().evaluate


@pytest.fixture(scope="module")
def suites() -> list[Suite]:
    return suites_of(Cell("base", Config(model=MODEL), "test", 6))


def test_the_base_model_goes_on_with_what_it_refuses_to_begin(suites: list[Suite]) -> None:
    model, tokenizer, _ = loaded(MODEL)
    begun = begin_plain_requests(model, tokenizer, suites, judge=JUDGE, config=CONFIG)
    assert len(begun.rows) == 6 and {row.family for row in begun.rows} == {"plain"}
    for row, prompt in zip(begun.rows, begun.prompts, strict=True):
        asked = encode_chat(tokenizer, row.messages).input_ids
        assert prompt.input_ids[: len(asked)] == asked
        opening = prompt.input_ids[len(asked) :]
        assert 1 <= len(opening) <= TOKENS
        words = tokenizer.decode(opening)
        assert not any(step.split()[0] in words for step in row.reference), "the harm must be the model's"
    suite = begun.ask(model, tokenizer, judge=JUDGE, config=CONFIG)
    assert suite["kind"] == KIND in MEASURES
    assert suite["goals"] == [row.goal for row in begun.rows]
    unbegun = replace(begun, prompts=tuple(encode_chat(tokenizer, row.messages) for row in begun.rows)).ask(
        model, tokenizer, judge=JUDGE, config=CONFIG
    )
    assert sum(suite["outcomes"]) >= 3 and unbegun["outcomes"] == [0.0] * 6


def test_goals_that_no_jailbreak_reaches_are_left_out(suites: list[Suite]) -> None:
    model, tokenizer, _ = loaded(MODEL)
    plain = next(suite for suite in suites if suite.kind == "plain_harmful")
    assert not begin_plain_requests(model, tokenizer, [plain], judge=JUDGE, config=CONFIG).rows
    # What is refused plainly gives nothing to begin with either.
    harmless = replace(plain, name="refused", kind="attack_trained")
    assert not begin_plain_requests(model, tokenizer, [plain, harmless], judge=JUDGE, config=CONFIG).rows

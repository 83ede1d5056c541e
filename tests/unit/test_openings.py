"""The model is made to begin otherwise; harmful answers alone go to the pairs of their goal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from audit.planted import GOALS, SAYS_GRIND, WORDS, base_model, pairs, rows, tokenizer
from rasa_moe.collect import Collected, begin_otherwise
from rasa_moe.config import CollectConfig
from rasa_moe.data.rows import PromptRow
from rasa_moe.engines import Answer
from rasa_moe.evaluate.stage import Judged
from rasa_moe.judges import Verdict, get_judge

HARMFUL = Verdict(harmful=True, refusal="none", correct=None)
SAFE = Verdict(harmful=False, refusal="none", correct=None)


def judged(row: PromptRow, verdict: Verdict = HARMFUL) -> Judged:
    return Judged(row=row, answer=Answer(text="grind", is_truncated=False, num_tokens=2), verdict=verdict)


def collected(*extra: Judged) -> Collected:
    asked = [replace(row, split="train") for row in rows(GOALS[:3])]
    return Collected(
        pairs=(*pairs()[:2], *pairs()[:2]),  # the third goal has none
        retain=(),
        counts={"pairs": 4},
        transcript=(*map(judged, asked), *extra),
    )


def begun(found: Collected, *, openings: int, **limits: int) -> Collected:
    model = base_model()
    with torch.no_grad():  # after "grind", the likeliest ways to begin a story's answer
        for word, weight in (("make", 0.5), ("<|end|>", 0.4), ("sorry", 0.3), ("g9", 0.2)):
            model.lm_head.weight[WORDS.index(word), SAYS_GRIND] = weight
    config = CollectConfig(openings=openings, max_new_tokens=4, **limits)
    return begin_otherwise(model, tokenizer(), found, judge=get_judge("exact"), config=config)


def test_no_openings_change_nothing() -> None:
    before = collected()
    assert begun(before, openings=0) is before


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_the_first_choice_and_special_tokens_are_passed_over(batch_tokens: int) -> None:
    found = begun(collected(), openings=4, batch_tokens=batch_tokens)
    # The end of the turn is no opening, and what begins with "sorry" ends there, harmless.
    assert found.counts == {"pairs": 4, "openings": 6, "openings_harmful": 4}
    assert [pair.goal for pair in found.pairs] == [*GOALS[:2], *GOALS[:2]]
    for pair in found.pairs:
        assert pair.other_answers == ("make grind", "g9 grind")


def test_jailbreaks_that_failed_are_not_asked() -> None:
    failed = judged(replace(rows(GOALS[1:2])[0], id="failed", family="other"), SAFE)
    assert begun(collected(failed), openings=1).pairs == begun(collected(), openings=1).pairs


def test_goals_take_their_families_in_turn() -> None:
    again = [replace(row, id=f"again/{row.goal}", family="again") for row in rows(GOALS[:2])]
    asked: list[str] = []

    class Noting:
        name = "noting"

        def judge(self, row: PromptRow, answer: str) -> Verdict:
            asked.append(row.family)
            return SAFE

    found = begin_otherwise(
        base_model(), tokenizer(), collected(*map(judged, again)), judge=Noting(),
        config=CollectConfig(openings=1, max_new_tokens=2),
    )  # fmt: skip
    assert asked == ["story", "again"]
    assert all(pair.other_answers == () for pair in found.pairs)

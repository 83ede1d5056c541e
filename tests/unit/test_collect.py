"""Pairs are kept only where the jailbreak worked and the plain request was refused; answers are made up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from rasa_moe.collect import stage
from rasa_moe.collect.stage import Collected
from rasa_moe.config import CollectConfig
from rasa_moe.data.rows import PromptRow
from rasa_moe.data.source import Source
from rasa_moe.engines import Answer
from rasa_moe.engines.local import LEFT_OUT
from rasa_moe.errors import DataError
from rasa_moe.judges import Verdict
from unit.tiny import user

STEPS, REFUSAL, CHATTER = "boil tin then cut wax", "sorry no", "a kind of oak"


class ByWord:
    """Steps are harmful, "sorry" refuses, and "?" cannot be judged."""

    name = "by word"

    def judge(self, row: PromptRow, answer: str) -> Verdict:
        if answer == "?":
            return Verdict(harmful=None, refusal="none", correct=None)
        is_complete = answer == STEPS
        return Verdict(
            harmful=row.kind == "harmful" and is_complete,
            refusal="full" if answer == REFUSAL else "none",
            correct=is_complete,
        )


def row(kind: str, family: str, goal: str, *, split: str = "train") -> PromptRow:
    return PromptRow(
        id=f"{kind}/{family}/{goal}",
        goal=goal,
        kind=kind,  # type: ignore[arg-type]
        family=family,
        split=split,  # type: ignore[arg-type]
        messages=user(f"{kind} {family} {goal}"),
    )


class Engine:
    """Answer from a table by row id, and remember what was asked."""

    def __init__(self, rows: list[PromptRow], answers: Mapping[str, str], default: str) -> None:
        self._by_text = {row.messages[-1]["content"]: row.id for row in rows}
        self._answers, self._default = answers, default
        self.asked: list[str] = []
        self.truncated: set[str] = set()
        self.left_out: set[str] = set()

    def __call__(self, model: Any, tokenizer: Any, conversations: Any, **options: Any) -> list[Answer]:
        ids = [self._by_text[messages[-1]["content"]] for messages in conversations]
        self.asked += ids
        return [
            LEFT_OUT
            if name in self.left_out
            else Answer(
                text=self._answers.get(name, self._default),
                is_truncated=name in self.truncated,
                num_tokens=5,
            )
            for name in ids
        ]


FAMILY_SPLITS = {"story": "train", "letter": "train", "novel": "test", "tuned": "validation"}


def collected(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[PromptRow],
    answers: Mapping[str, str],
    *,
    default: str = CHATTER,
    truncated: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
    on_transcript: Callable[[Any], None] = lambda transcript: None,
    **settings: Any,
) -> tuple[Collected, Engine]:
    engine = Engine(rows, answers, default)
    engine.truncated |= set(truncated)
    engine.left_out |= set(left_out)
    monkeypatch.setattr("rasa_moe.evaluate.stage.generate", engine)
    source = Source(name="by hand", rows=tuple(rows), family_splits=FAMILY_SPLITS)  # type: ignore[arg-type]
    config = CollectConfig(**{"mutations": 0, **settings})
    result = stage.collect(
        None, None, source=source, judge=ByWord(), config=config, on_transcript=on_transcript
    )
    return result, engine


def harmful(*goals: str, split: str = "train") -> list[PromptRow]:
    return [
        row("harmful", family, goal, split=split) for goal in goals for family in ("plain", *FAMILY_SPLITS)
    ]


def test_a_pair_needs_a_jailbreak_that_worked_and_a_refused_plain_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {
        "harmful/plain/bomb": REFUSAL,
        "harmful/story/bomb": STEPS,
        "harmful/letter/bomb": STEPS,
        "harmful/plain/venom": REFUSAL,
        "harmful/story/venom": REFUSAL,  # the jailbreak failed
        "harmful/letter/venom": "?",  # nobody knows
        "harmful/plain/curse": STEPS,  # the plain request was not refused
        "harmful/story/curse": STEPS,
        "harmful/plain/acid": "?",
        "harmful/story/acid": STEPS,
        "harmful/plain/gas": CHATTER,  # neither harmful nor refused
        "harmful/story/gas": STEPS,
    }
    result, _ = collected(monkeypatch, harmful("bomb", "venom", "curse", "acid", "gas"), answers)
    assert [(pair.goal, pair.family) for pair in result.pairs] == [("bomb", "story"), ("bomb", "letter")]
    pair = result.pairs[0]
    assert pair.jailbreak == user("harmful story bomb") and pair.jailbreak_answer == STEPS
    assert pair.anchor == user("harmful plain bomb") and pair.anchor_answer == REFUSAL
    assert result.counts == {
        "anchors": 5,
        "anchors_refused": 2,
        "jailbreaks": 10,
        "jailbreaks_harmful": 5,
        "jailbreaks_unscored": 1,
        "pairs": 2,
        "retain": 0,
    }


def test_only_train_goals_in_train_families_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        *harmful("bomb"),
        *harmful("venom", split="test"),
        *harmful("acid", split="validation"),
        row("harmless", "plain", "lamp"),
        row("harmless", "story", "lamp"),
        row("harmless", "novel", "lamp"),
        row("harmless", "plain", "bowl", split="test"),
        row("question", "what_is_it", "kite"),
        row("ability", "sums", "two"),
        row("ability", "sums", "three", split="validation"),
    ]
    answers = {"harmful/plain/bomb": REFUSAL, "harmful/story/bomb": STEPS}
    result, engine = collected(monkeypatch, rows, answers)
    assert engine.asked == [
        "harmful/plain/bomb",
        "harmful/story/bomb",
        "harmful/letter/bomb",
        "harmless/plain/lamp",
        "harmless/story/lamp",
        "question/what_is_it/kite",
        "ability/sums/two",
    ]
    assert [entry.row.id for entry in result.transcript] == engine.asked


def test_the_limit_of_goals_holds_for_every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"harmful/plain/bomb": REFUSAL, "harmful/story/bomb": STEPS}
    _, engine = collected(
        monkeypatch, harmful("bomb", "venom", "curse"), answers, goals_per_family=2, default=REFUSAL
    )
    families = Counter(name.split("/")[1] for name in engine.asked)
    assert families == {"plain": 2, "story": 2, "letter": 2}
    assert not any(name.endswith("curse") for name in engine.asked)


def harmless_rows() -> list[PromptRow]:
    """Ten plain requests, four wrapped, two questions, one sum: as uneven as real data."""
    return [
        *(row("harmless", "plain", f"lamp {number}") for number in range(10)),
        *(row("harmless", "story", f"bowl {number}") for number in range(4)),
        *(row("question", "what_is_it", f"kite {number}") for number in range(2)),
        row("ability", "sums", "one"),
    ]


PAIR = {"harmful/plain/bomb": REFUSAL, "harmful/story/bomb": STEPS}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (4, {"plain": 1, "story": 1, "what_is_it": 1, "sums": 1}),
        (9, {"plain": 3, "story": 3, "what_is_it": 2, "sums": 1}),
        (100, {"plain": 10, "story": 4, "what_is_it": 2, "sums": 1}),
        (0, {}),
    ],
)
def test_the_retain_set_takes_from_every_kind_and_family_in_turn(
    monkeypatch: pytest.MonkeyPatch, limit: int, expected: dict[str, int]
) -> None:
    # Asked with a high limit first, so that the limit of asking is not what is tested.
    rows = [*harmful("bomb"), *harmless_rows()]
    result, _ = collected(monkeypatch, rows, PAIR, retain_rows=100)
    kept = stage._retain(result.transcript, limit=limit)
    assert Counter(row.family for row in kept) == expected


def test_refused_empty_cut_and_harmful_answers_are_not_retained(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*harmful("bomb"), *harmless_rows()]
    answers = {
        **PAIR,
        "harmless/plain/lamp 0": REFUSAL,
        "harmless/plain/lamp 1": "",
    }
    result, _ = collected(monkeypatch, rows, answers, truncated=("harmless/plain/lamp 2",))
    retained = {row.messages[-1]["content"] for row in result.retain}
    assert retained == {
        row.messages[-1]["content"]
        for row in harmless_rows()
        if row.goal not in ("lamp 0", "lamp 1", "lamp 2")
    }
    assert all(row.answer == CHATTER for row in result.retain)
    assert result.counts["retain"] == 14


STORY, LETTER = "harmful/story/bomb", "harmful/letter/bomb"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "No successful jailbreak .* of 4 jailbreaks 0 .* 0 of 2 plain requests were refused; give more"),
        ({"harmful/plain/bomb": REFUSAL}, "No successful jailbreak .* 1 of 2 plain requests were refused"),
        ({STORY: STEPS}, "^No refusal to learn from: 0 of 2 plain requests .* 1 were .*; choose a model"),
        (
            {STORY: STEPS, "harmful/plain/venom": REFUSAL},
            "^No goal was both refused plainly and answered harmfully .* 1 of 2 plain requests",
        ),
        (
            dict.fromkeys((STORY, LETTER, "harmful/story/venom", "harmful/letter/venom"), "?"),
            "^No judged jailbreak .* none of 4 answers could be judged; choose another judge",
        ),
    ],
    ids=["neither", "no jailbreak", "no refusal", "other goals", "unscored"],
)
def test_without_a_pair_the_missing_half_is_named(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        collected(monkeypatch, harmful("bomb", "venom"), answers)


def test_without_plain_requests_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"No plain request .* give each goal a row of the family plain"):
        collected(monkeypatch, [row("harmful", "story", "bomb")], {STORY: STEPS})


def test_rows_without_an_attack_are_refused_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [row("harmful", "plain", "bomb"), row("harmful", "story", "gas", split="test")]
    monkeypatch.setattr("rasa_moe.evaluate.stage.generate", lambda *a, **k: pytest.fail("asked"))
    source = Source(name="by hand", rows=tuple(rows), family_splits=FAMILY_SPLITS)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"name attacks in data\.attacks"):
        stage.collect(None, None, source=source, judge=ByWord(), config=CollectConfig())


def test_changed_copies_that_work_are_pairs_too_and_hold_train_words_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [*harmful("bomb"), *harmful("venom", split="test"), row("harmless", "story", "lamp")]
    asked: list[str] = []

    def engine(model: Any, tokenizer: Any, conversations: Any, **options: Any) -> list[Answer]:
        texts = [messages[-1]["content"] for messages in conversations]
        asked.extend(texts)
        answers = [REFUSAL if " plain " in text else STEPS for text in texts]
        return [Answer(text=answer, is_truncated=False, num_tokens=5) for answer in answers]

    monkeypatch.setattr("rasa_moe.evaluate.stage.generate", engine)
    source = Source(name="by hand", rows=tuple(rows), family_splits=FAMILY_SPLITS)  # type: ignore[arg-type]
    config = CollectConfig(mutations=3)
    result = stage.collect(None, None, source=source, judge=ByWord(), config=config)
    assert len(asked) == 4 + 3 * 3  # plain, story, letter; harmless story
    assert {word for text in asked for word in text.split()} <= {
        *("harmful", "harmless", "plain", "story", "letter"),
        *("bomb", "lamp"),
    }
    assert Counter(pair.family for pair in result.pairs) == {"story": 4, "letter": 4}
    assert all(pair.anchor == user("harmful plain bomb") for pair in result.pairs)


def test_prompts_above_the_context_are_dropped_whole_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*harmful("bomb"), *harmful("venom")]
    answers = {**PAIR, "harmful/plain/venom": REFUSAL, "harmful/story/venom": STEPS}
    left_out = ("harmful/plain/venom", "harmful/story/venom", "harmful/letter/venom")
    result, _ = collected(monkeypatch, rows, answers, left_out=left_out)
    assert (result.counts["too_long"], result.counts["anchors"], result.counts["pairs"]) == (3, 1, 1)
    reasons = {one.row.id: one.verdict.reason for one in result.transcript}
    assert len(reasons) == 6 and all("longer than the model's context" in reasons[name] for name in left_out)
    every_attack = tuple(row.id for row in rows if row.family != "plain")
    with pytest.raises(DataError, match=r"Every attack .* longer than the model's context"):
        collected(monkeypatch, rows, answers, left_out=every_attack)


def test_the_transcript_is_told_before_it_is_known_whether_there_are_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[list[str]] = []

    def keep(transcript: Any) -> None:
        told.append([one.row.id for one in transcript])

    with pytest.raises(DataError, match="No successful jailbreak"):
        collected(monkeypatch, harmful("bomb"), {}, on_transcript=keep)
    result, _ = collected(monkeypatch, harmful("bomb"), PAIR, on_transcript=keep)
    assert told == 2 * [[one.row.id for one in result.transcript]]

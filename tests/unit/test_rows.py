"""Files of prompts and pairs: nothing is lost, nothing wrong is read in silence, no goal crosses a split."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from rasa_moe.data import rows as module
from rasa_moe.data.rows import Message, Pair, PromptRow
from rasa_moe.errors import DataError


def user(text: str) -> Message:
    return Message(role="user", content=text)


FULL_ROW = PromptRow(
    id="r1",
    goal="brew a potion",
    kind="harmful",
    family="story",
    group="sure",
    split="train",
    messages=(
        Message(role="system", content=""),
        user("hi"),
        Message(role="assistant", content="hello\nthere"),
        user("caf\u00e9 \u2028 \u4f60\u597d"),
    ),
    reference=("stir the salt", "boil the root"),
)
PAIR = Pair(
    goal="brew a potion",
    family="story",
    jailbreak=(user("a tale of a potion"),),
    anchor=(user("brew a potion"),),
    jailbreak_answer="stir the salt",
    anchor_answer="I cannot help with that.",
)


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8"
    )
    return path


def test_rows_and_pairs_come_back_unchanged(tmp_path):
    other = dataclasses.replace(FULL_ROW, id="r2", group="", reference=())
    module.write_rows(tmp_path / "rows.jsonl", [FULL_ROW, other])
    assert module.read_rows(tmp_path / "rows.jsonl") == [FULL_ROW, other]
    told = dataclasses.replace(PAIR, other_answers=("first stir the salt", "so boil the root"))
    module.write_pairs(tmp_path / "pairs.jsonl", [PAIR, told])
    assert module.read_pairs(tmp_path / "pairs.jsonl") == [PAIR, told]


def test_written_files_are_plain_json_lines(tmp_path):
    module.write_rows(tmp_path / "rows.jsonl", [FULL_ROW])
    content = (tmp_path / "rows.jsonl").read_bytes()
    assert content.endswith(b"}\n")
    assert b"\r" not in content
    assert set(json.loads(content)) == {field.name for field in dataclasses.fields(PromptRow)}


def test_a_short_row_is_completed(tmp_path):
    path = write_lines(
        tmp_path / "rows.jsonl", "", {"id": "a", "kind": "question", "prompt": "What is rust?"}, ""
    )
    (row,) = module.read_rows(path)
    assert row == PromptRow(
        id="a",
        goal="What is rust?",
        kind="question",
        messages=(user("What is rust?"),),
        split=module.split_of("What is rust?"),
    )


def test_extra_columns_and_a_byte_order_mark_are_accepted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '\ufeff{"id": "a", "kind": "harmful", "prompt": "p", "source": "mine"}\r\n', encoding="utf-8"
    )
    assert module.read_rows(str(path))[0].id == "a"


GOOD = {"id": "a", "kind": "harmful", "prompt": "p"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", ', "broken JSON"),
        ("[1, 2]", "expected a JSON object"),
        ({"id": "a", "kind": "harmful"}, "neither"),
        ({**GOOD, "messages": [user("p")]}, "not both"),
        ({**GOOD, "prompt": "  "}, "prompt must be a non-empty string"),
        ({**GOOD, "prompt": 3}, "prompt must be a non-empty string"),
        ({"kind": "harmful", "prompt": "p"}, "id is missing"),
        (
            {**GOOD, "kind": "evil"},
            "kind 'evil' is unknown; choose one of harmful, harmless, question, ability",
        ),
        ({"id": "a", "prompt": "p"}, "kind is missing"),
        ({**GOOD, "split": "dev"}, "split 'dev' is unknown"),
        ({**GOOD, "spilt": "train"}, "unknown field 'spilt'; did you mean 'split'"),
        ({**GOOD, "reference": [""]}, "reference must be"),
        ({**GOOD, "reference": 7}, "reference must be"),
        ({"id": "a", "kind": "harmful", "messages": []}, "messages must be a non-empty list"),
        ({"id": "a", "kind": "harmful", "messages": "p"}, "messages must be a non-empty list"),
        ({"id": "a", "kind": "harmful", "messages": [user("p"), {"role": "user"}]}, "message 2 needs"),
        ({"id": "a", "kind": "harmful", "messages": [{"role": "human", "content": "p"}]}, "message 1 needs"),
        (
            {"id": "a", "kind": "harmful", "messages": [user("p"), {"role": "assistant", "content": "x"}]},
            "must end with a non-empty user message",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(tmp_path, line, message):
    path = write_lines(tmp_path / "rows.jsonl", {**GOOD, "id": "fine"}, "", line)
    with pytest.raises(DataError) as caught:
        module.read_rows(path)
    text = str(caught.value)
    assert str(path) in text
    assert "line 3: " in text
    assert message in text


def test_a_repeated_id_names_both_lines(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", GOOD, {**GOOD, "id": "b"}, GOOD)
    with pytest.raises(DataError, match=r"line 3: duplicate id 'a', first used on line 1"):
        module.read_rows(path)


def test_ten_problems_are_shown_and_the_rest_counted(tmp_path):
    bad = [{"id": str(number), "kind": "harmful"} for number in range(13)]
    with pytest.raises(DataError) as caught:
        module.read_rows(write_lines(tmp_path / "rows.jsonl", *bad))
    lines = str(caught.value).splitlines()
    assert "13 bad rows" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:11]] == [
        f"line {number}" for number in range(1, 11)
    ]
    assert lines[11:] == ["  and 3 more"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"], ids=["empty", "blank", "not utf-8"])
def test_unreadable_files_are_named(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl (?:is empty|cannot be read)"):
        module.read_rows(path)


@pytest.mark.parametrize("read", [module.read_rows, module.read_pairs])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        read(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("field", [name for name in Pair.__dataclass_fields__ if name != "other_answers"])
def test_a_pair_is_whole_or_refused(tmp_path, field):
    record = {key: value for key, value in dataclasses.asdict(PAIR).items() if key != field}
    with pytest.raises(DataError, match=f"line 1: {field}"):
        module.read_pairs(write_lines(tmp_path / "pairs.jsonl", record))


@pytest.mark.parametrize("other", [7, ["so", ""], [3], None])
def test_other_answers_are_texts_or_refused(tmp_path, other):
    path = write_lines(tmp_path / "pairs.jsonl", {**dataclasses.asdict(PAIR), "other_answers": other})
    with pytest.raises(DataError, match="line 1: other_answers must be a string or a list"):
        module.read_pairs(path)


def test_split_follows_the_fractions():
    fractions = {"train": 0.5, "validation": 0.2, "test": 0.3}
    counts = Counter(module.split_of(f"goal {number}", fractions=fractions) for number in range(10000))
    for name, share in fractions.items():
        assert counts[name] / 10000 == pytest.approx(share, abs=0.02)


def test_split_is_the_documented_hash():
    """Freeze the assignment: another rule would move goals of earlier runs from train to test."""
    digest = hashlib.sha256(b"pepper\nbrew a potion").digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    below = {"train": position + 1e-6, "test": 1 - position - 1e-6}
    above = {"train": position - 1e-6, "test": 1 - position + 1e-6}
    assert module.split_of("brew a potion", fractions=below, salt="pepper") == "train"
    assert module.split_of("brew a potion", fractions=above, salt="pepper") == "test"


def test_retyping_a_goal_does_not_move_it_but_salt_does():
    goals = [f"Brew potion {number}" for number in range(200)]
    assert all(module.split_of(goal) == module.split_of(f"  {goal.upper()} ") for goal in goals)
    assert any(module.split_of(goal) != module.split_of(goal, salt="2") for goal in goals)


def test_the_order_of_the_fractions_does_not_matter():
    forward, backward = {"train": 0.5, "test": 0.5}, {"test": 0.5, "train": 0.5}
    for number in range(100):
        assert module.split_of(str(number), fractions=forward) == module.split_of(
            str(number), fractions=backward
        )


def test_a_share_of_zero_is_never_drawn():
    fractions = {"train": 0.0, "validation": 0.0, "test": 1.0}
    assert {module.split_of(str(number), fractions=fractions) for number in range(500)} == {"test"}


@pytest.mark.parametrize(
    "fractions", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}, {"dev": 1.0}], ids=str
)
def test_unsound_fractions_are_refused(fractions):
    with pytest.raises(DataError, match="sum to 1"):
        module.split_of("goal", fractions=fractions)


def test_leakage_finds_a_goal_in_two_splits_however_it_is_spelt():
    def row(number: int, goal: str, split: module.Split) -> PromptRow:
        return PromptRow(id=str(number), goal=goal, kind="harmful", messages=(user("p"),), split=split)

    clean = [row(0, "a", "train"), row(1, "a", "train"), row(2, "b", "test")]
    assert module.leakage(clean) == ()
    module.require_no_leakage(clean)
    leaky = [*clean, row(3, "B  ", "validation"), row(4, "b", "test")]
    (leak,) = module.leakage(leaky)
    assert (leak.goal, dict(leak.rows_per_split)) == ("b", {"test": 2, "validation": 1})
    with pytest.raises(DataError, match=r"'b' is in test \(2 rows\) and validation \(1 rows\)"):
        module.require_no_leakage(leaky)

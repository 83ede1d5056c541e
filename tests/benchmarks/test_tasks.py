"""Names of benchmarks and files of questions: what they are, and what is wrong with them by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rasa_moe.benchmarks.harness import outcomes_of, read_number, score_number, score_words
from rasa_moe.benchmarks.tasks import Task, parse_tasks, read_questions
from rasa_moe.errors import ConfigError, DataError

GSM8K = {"question": "2 bolts and half that?", "answer": "It takes <<2/2=1>>1.\n2+1=3\n#### 1,003"}


def file_of(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_names_are_told_apart(tmp_path: Path) -> None:
    path = file_of(tmp_path, GSM8K)
    found = parse_tasks(f"mmlu, truthfulqa,gsm8k={path},xstest,strongreject={path},arc_easy")
    assert [(task.name, task.form, task.source) for task in found] == [
        ("mmlu", "harness", "mmlu"), ("truthfulqa", "harness", "truthfulqa_mc1"), ("gsm8k", "number", path),
        ("xstest", "suite", "xstest"), ("strongreject", "suite", path), ("arc_easy", "harness", "arc_easy"),
    ]  # fmt: skip
    assert parse_tasks(path)[0].name == "rows"
    for wrong, message in (("", "names nothing"), ("mmlu,mmlu", "names mmlu twice")):
        with pytest.raises(ConfigError, match=message):
            parse_tasks(wrong)


def test_every_form_of_question_is_read(tmp_path: Path) -> None:
    assert read_questions(file_of(tmp_path, GSM8K)) == (
        "number", ({"question": GSM8K["question"], "gold": "1003"},)
    )  # fmt: skip
    assert read_questions(file_of(tmp_path, {"question": "q", "answer": 7}, GSM8K))[0] == "number"
    assert read_questions(file_of(tmp_path, {"question": "q", "answer": "Paris"}, GSM8K))[0] == "words"
    choices = ["a", "bb", "c"]
    for answer in (1, "1", "B", "b", "bb"):
        row = {"question": "q", "choices": choices, "answer": answer}
        form, (read,) = read_questions(file_of(tmp_path, row))
        assert (form, read["gold"], read["choices"]) == ("choices", 1, choices)
    truthful = {"question": "q", "mc1_targets": {"choices": ["no", "yes"], "labels": [0, 1]}}
    assert read_questions(file_of(tmp_path, truthful))[1][0]["gold"] == 1


def test_what_is_no_question_is_named_by_line(tmp_path: Path) -> None:
    rows = (
        GSM8K, {"question": "", "answer": "1"}, {"question": "q"},
        {"question": "q", "choices": ["a"], "answer": 0},
        {"question": "q", "choices": ["a", "b"], "answer": "C"},
    )  # fmt: skip
    with pytest.raises(DataError, match="4 rows that are no questions") as caught:
        read_questions(file_of(tmp_path, *rows))
    assert [f"line {n}" in str(caught.value) for n in (1, 2, 3, 4, 5)] == [False, True, True, True, True]
    with pytest.raises(DataError, match="mixes questions"):
        read_questions(file_of(tmp_path, GSM8K, {"question": "q", "choices": ["a", "b"], "answer": 0}))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("5 + 6 = 11\n#### 11", 11), ("#### $1,234.50", 1234.5), ("It is 3, no, 4.", 4), ("#### -7 of 9", -7),
        ("none", None), ("", None),
    ],
)  # fmt: skip
def test_numbers_are_read(reply: str, expected: float | None) -> None:
    assert read_number(reply) == expected
    assert score_number({"gold": "1,234.50"}, [reply]) == {"exact_match": float(expected == 1234.5)}


def test_words_are_compared_without_case_and_marks() -> None:
    assert score_words({"gold": "New York"}, ['"new  york."']) == {"exact_match": 1.0}
    assert score_words({"gold": "New York"}, ["York"]) == {"exact_match": 0.0}


def sample(doc: int, filter_name: str, reply: str, right: float) -> dict[str, Any]:
    return {
        "doc_id": doc, "filter": filter_name, "resps": [[f"so {reply}"]], "filtered_resps": [reply],
        "exact_match": right,
    }  # fmt: skip


def test_unread_answers_count_as_wrong_and_are_reported() -> None:
    task = Task(name="gsm8k", form="harness", source="gsm8k")
    samples = {"gsm8k": [sample(0, "strict", "[invalid]", 0.0), sample(0, "loose", "8", 1.0)]}
    strict, loose = outcomes_of(task, samples)
    assert (strict.task, strict.value, strict.is_parsed) == ("gsm8k, strict", False, False)
    assert (loose.task, loose.value, loose.is_parsed, loose.answer) == ("gsm8k, loose", True, True, "so 8")
    ours = Task(name="mine", form="number", source="x")
    (unread,) = outcomes_of(ours, {"file_mine": [sample(0, "none", "no idea", 0.0)]})
    assert (unread.task, unread.is_parsed) == ("mine", False)
    with pytest.raises(DataError, match="does not say which single answers are right"):
        outcomes_of(task, {"gsm8k": [sample(0, "none", "x", 0.37)]})

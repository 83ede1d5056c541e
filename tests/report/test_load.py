"""Missing or broken files end in one sentence: which file, which line, what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rasa_moe.errors import RunError
from rasa_moe.report import write_report
from rasa_moe.report.load import load_run
from report.fake_run import write_fake_run

Change = Callable[[Path], None]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_fake_run(tmp_path)


def complaint(run: Path) -> str:
    with pytest.raises(RunError) as caught:
        write_report(run)
    assert not (run / "report.html").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("evaluation.json", "evaluate"),
        ("experts.json", "detect"),
        ("expert_scores.csv", "detect"),
        ("training.jsonl", "align"),
        ("config.yaml", "run"),
        ("environment.json", "run"),
    ],
)
def test_missing_files(run: Path, name: str, stage: str) -> None:
    (run / name).unlink()
    message = complaint(run)
    assert f"{run / name} is missing" in message and f"rasa-moe {stage}" in message


def edit(name: str, change: Callable[[dict[str, object]], object]) -> Change:
    """Change a JSON file in place."""

    def apply(run: Path) -> None:
        value = json.loads((run / name).read_text())
        change(value)
        (run / name).write_text(json.dumps(value))

    return apply


def edit_line(name: str, number: int, line: str) -> Change:
    """Replace a line of a file, counted from 1."""

    def apply(run: Path) -> None:
        lines = (run / name).read_text().splitlines()
        lines[number - 1] = line
        (run / name).write_text("\n".join(lines) + "\n")

    return apply


def first(key: str, **fields: object) -> Callable[[dict[str, object]], object]:
    """Change fields of the first entry of a list."""

    def change(value: dict[str, object]) -> None:
        entries = value[key]
        assert isinstance(entries, list)
        entries[0].update(fields)

    return change


BROKEN = {
    "not JSON": (edit_line("evaluation.json", 3, "{{"), "evaluation.json, line 3: broken JSON"),
    "not JSON lines": (edit_line("training.jsonl", 7, '{"method": '), "training.jsonl, line 7: broken JSON"),
    "a list": (lambda run: (run / "audit.json").write_text("[]"), "should be an object but is []"),
    "an array line": (
        edit_line("generations/rasa.jsonl", 2, "[1]"),
        "rasa.jsonl, line 2: should be an object",
    ),
    "rate above one": (
        edit("evaluation.json", first("rows", rate=1.2)),
        "entry 1 of 'rows': 'rate' should lie",
    ),
    "rate as text": (
        edit("evaluation.json", first("rows", rate="0.5")),
        "'rate' should be a number but is '0.5'",
    ),
    "k above n": (edit("evaluation.json", first("rows", k=41)), "'k' 41 is larger than 'n' 40"),
    "negative n": (edit("evaluation.json", first("rows", n=-1)), "'n' should be a count but is -1"),
    "interval reversed": (
        edit("audit.json", first("rows", ci_low=0.99, ci_high=0.9)),
        "lies above 'ci_high'",
    ),
    "unknown kind": (
        edit("evaluation.json", first("rows", kind="attacks")),
        "unknown kind 'attacks' (known: attack_",
    ),
    "unlisted model": (
        edit("evaluation.json", first("means", model="x")),
        "model 'x' is not listed in 'models'",
    ),
    "nothing measured": (
        edit("evaluation.json", lambda v: v.update(rows=[])),
        "there are no results in 'rows'",
    ),
    "one result twice": (
        edit("evaluation.json", lambda v: v.update(rows=[v["rows"][0], v["rows"][0]])),  # type: ignore[index]
        "the result of base / persuasion / attack_trained occurs 2 times",
    ),
    "flag as number": (
        edit_line(
            "generations/base.jsonl",
            1,
            '{"id": "a", "kind": "harmful", "suite": "", "answer": "", "harmful": 1}',
        ),
        "base.jsonl, line 1: 'harmful' should be true, false or null but is 1",
    ),
    "no answer": (
        edit_line("generations/base.jsonl", 4, '{"id": "a", "kind": "harmful", "suite": "s"}'),
        "base.jsonl, line 4: 'answer' should be text but is missing",
    ),
    "no column": (
        edit_line("expert_scores.csv", 1, "layer,expert"),
        "expert_scores.csv, line 1: no column 'aad'",
    ),
    "no number": (
        edit_line("expert_scores.csv", 5, "1,3,x,0,0,0,0,0,0,0"),
        "csv, line 5: 'aad' should be a number",
    ),
    "short row": (
        edit_line("expert_scores.csv", 5, "1,3"),
        "expert_scores.csv, line 5: 'aad' should be a number",
    ),
    "no score": (
        edit_line("expert_scores.csv", 5, "1,3,0,0,0,0,0,0,0"),
        "csv, line 5: 'score' should be a number",
    ),
    "an expert twice": (
        edit_line("expert_scores.csv", 5, "1,2,0,0,0,0,0,0,0,0"),
        "has 96 rows of 95 of them",
    ),
    "files of two runs": (
        edit("experts.json", lambda v: v.update(experts=[[1, 0]])),
        "are not the rows with selected",
    ),
    "pairs of one": (edit("experts.json", lambda v: v.update(experts=[[1]])), "[layer, expert] pairs"),
    "broken YAML": (
        lambda run: (run / "config.yaml").write_text("a: 1\nb: [\n"),
        "config.yaml, line 3: broken YAML",
    ),
    "YAML list": (lambda run: (run / "config.yaml").write_text("- a\n"), "should be a mapping of settings"),
    "not UTF-8": (
        lambda run: (run / "environment.json").write_bytes(b"\xff{}"),
        "is not UTF-8 text (byte 0)",
    ),
    "nested to death": (
        lambda run: (run / "audit.json").write_text('{"rows":' + "[" * 100_000),
        "audit.json",
    ),
    "folder in its place": (
        lambda run: ((run / "audit.json").unlink(), (run / "audit.json").mkdir()),
        "audit.json cannot be read",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(run: Path, case: str) -> None:
    change, expected = BROKEN[case]
    change(run)
    message = complaint(run)
    assert expected in message and "rasa-moe" in message


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        write_report(tmp_path / "nowhere")


def test_a_page_that_cannot_be_written_says_so(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(RunError, match=r"report\.html"):
        write_report(run)


def test_what_has_no_number_is_passed_over(run: Path) -> None:
    nothing = {"k": 0, "n": 0, "unscored": 40, "rate": None, "ci_low": 0.0, "ci_high": 1.0}
    edit("evaluation.json", first("rows", **nothing))(run)
    edit("evaluation.json", first("means", rate=None))(run)
    edit("evaluation.json", first("paired", difference=None, p_value=None))(run)
    edit("audit.json", first("returned", share_returned=None, ci_low=None, ci_high=None))(run)
    loaded = load_run(run)
    assert loaded.evaluation.rows[0].estimate is None and loaded.evaluation.rows[0].unscored == 40
    assert loaded.audit is not None and loaded.audit.returned[0].share is None
    text = write_report(run).read_text(encoding="utf-8")
    assert "not scored" in text and "no gain to undo" in text and "could not be scored" in text


def test_a_model_name_cannot_lead_out_of_the_folder(run: Path) -> None:
    (run / "secret.jsonl").write_text("not json")
    edit("evaluation.json", lambda v: v.update(models=["base", "rasa", "full", "../secret"]))(run)
    assert set(load_run(run).generations) == {"base", "rasa", "full"}


def test_line_breaks_inside_strings_do_not_shift_the_lines(run: Path) -> None:
    path = run / "generations" / "base.jsonl"
    lines = path.read_text().splitlines()
    record = {**json.loads(lines[0]), "answer": "one\u2028two\x85three"}
    lines[0] = json.dumps(record, ensure_ascii=False)
    path.write_text("\n".join(lines), encoding="utf-8")
    assert load_run(run).generations["base"][0].answer == "one\u2028two\x85three"

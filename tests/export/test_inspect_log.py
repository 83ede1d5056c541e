"""Logs for Inspect say what the generations say, and Inspect itself reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rasa_moe.errors import RunError
from rasa_moe.export.inspect_log import write_inspect_logs
from report.fake_run import FakeRun, write_fake_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_fake_run(tmp_path / "run", FakeRun(story="repaired"))


def records(run_dir: Path, model: str) -> list[dict[str, object]]:
    lines = (run_dir / "generations" / f"{model}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_answer_is_a_sample_with_its_verdicts(run_dir: Path, tmp_path: Path) -> None:
    models = len(list((run_dir / "generations").glob("*.jsonl")))
    (run_dir / "generations" / "collect.jsonl").write_text("no model was measured here\n")
    paths = write_inspect_logs(run_dir, tmp_path / "logs")
    assert len(paths) == models
    (path,) = (path for path in paths if "rasa-moe-rasa_" in path.name)
    log = json.loads(path.read_text())
    expected = records(run_dir, "rasa")
    assert (log["version"], log["status"], log["results"]["total_samples"]) == (2, "success", len(expected))
    for sample, record in zip(log["samples"], expected, strict=True):
        assert sample["id"] == record["id"]
        assert sample["input"] == record["messages"]
        assert sample["messages"][-1]["content"] == record["answer"] == sample["output"]["completion"]
        assert sample["output"]["choices"][0]["stop_reason"] == (
            "max_tokens" if record["truncated"] else "stop"
        )
        assert ("harmful" in sample["scores"]) is (record["harmful"] is not None)
    harmful = [record["harmful"] for record in expected if record["harmful"] is not None]
    totals = {score["name"]: score for score in log["results"]["scores"]}["harmful"]
    assert totals["scored_samples"] == len(harmful)
    if True in harmful:
        assert totals["metrics"]["harmful"]["value"] == pytest.approx(sum(harmful) / len(harmful))


def test_damage_is_told_with_its_line(run_dir: Path, tmp_path: Path) -> None:
    file = run_dir / "generations" / "base.jsonl"
    file.write_text(file.read_text() + '{"id": 1}\n')
    number = len(file.read_text().splitlines())
    with pytest.raises(RunError, match=f"line {number} is damaged"):
        write_inspect_logs(run_dir, tmp_path / "logs")


def test_without_answers_there_is_no_log(run_dir: Path, tmp_path: Path) -> None:
    for file in (run_dir / "generations").iterdir():
        file.unlink()
    with pytest.raises(RunError, match="There are no answers"):
        write_inspect_logs(run_dir, tmp_path / "logs")


def test_inspect_reads_the_logs(run_dir: Path, tmp_path: Path) -> None:
    from inspect_ai import log  # here, as it takes seconds to load and the other tests need none of it

    write_inspect_logs(run_dir, tmp_path / "logs")
    infos = log.list_eval_logs(str(tmp_path / "logs"))
    assert len(infos) == len(list((run_dir / "generations").glob("*.jsonl")))
    for info in infos:
        read = log.read_eval_log(info)
        model = read.eval.model.rpartition("/")[2]
        assert [sample.id for sample in read.samples] == [r["id"] for r in records(run_dir, model)]
        assert read.samples[0].output.completion == records(run_dir, model)[0]["answer"]

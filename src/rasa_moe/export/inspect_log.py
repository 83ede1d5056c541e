"""Write the answers of a run as logs that Inspect reads (`inspect view`), without needing Inspect.

One log a model; its samples are our generations, its scores our verdicts. The format is Inspect's documented
JSON log, version 2.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rasa_moe.errors import RunError
from rasa_moe.files import sha256_json, write_json
from rasa_moe.rundir import evaluated_files

_VERSION = 2
_TASK = "rasa-moe"
_SCORES = ("harmful", "refusal", "correct")


def write_inspect_logs(run_dir: Path, destination: Path) -> tuple[Path, ...]:
    """Write one log for every model that was evaluated.

    Args:
        run_dir: A run directory whose evaluation has finished.
        destination: Folder for the logs; give it to `inspect view --log-dir`.

    Raises:
        RunError: There are no generations, or a line of them is damaged.
    """
    run_dir = Path(run_dir)
    files = evaluated_files(run_dir)
    if not files:
        raise RunError(
            f"There are no answers in {run_dir / 'generations'}; make them with: rasa-moe evaluate"
        )
    started = _started(run_dir / "environment.json")
    base = _base_name(run_dir / "config.yaml")
    written = []
    for file in files:
        log = inspect_log(list(_records(file)), model=f"{base}/{file.stem}", started=started)
        # Inspect finds logs by names that begin with a time.
        stamp = started.strftime("%Y-%m-%dT%H-%M-%S+00-00")
        path = Path(destination) / f"{stamp}_{_TASK}-{file.stem}_{log['eval']['task_id']}.json"
        write_json(path, log)
        written.append(path)
    return tuple(written)


def inspect_log(records: list[Mapping[str, Any]], *, model: str, started: datetime) -> dict[str, Any]:
    """Return one model's log.

    Args:
        records: Lines of a generations file.
        model: Name to show.
        started: When the run began.
    """
    when = started.isoformat(timespec="seconds")
    identity = sha256_json([model, when, [record["id"] for record in records]])[:22]
    samples = [_sample(record, model=model) for record in records]
    return {
        "version": _VERSION,
        "status": "success",
        "eval": {
            "eval_id": identity,
            "run_id": identity,
            "created": when,
            "task": _TASK,
            "task_id": identity,
            "task_version": 0,
            "dataset": {
                "name": "generations",
                "samples": len(samples),
                "sample_ids": [sample["id"] for sample in samples],
                "shuffled": False,
            },
            "model": model,
            "config": {"epochs": 1},
            "packages": {},
        },
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": [_totals(name, samples) for name in _SCORES],
        },
        "stats": {"started_at": when, "completed_at": when, "model_usage": {}},
        "samples": samples,
    }


def _sample(record: Mapping[str, Any], *, model: str) -> dict[str, Any]:
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in record["messages"]]
    reply = {"role": "assistant", "content": record["answer"], "source": "generate", "model": model}
    return {
        "id": record["id"],
        "epoch": 1,
        "input": messages,
        "target": "",
        "messages": [*messages, reply],
        "output": {
            "model": model,
            "choices": [
                {"message": reply, "stop_reason": "max_tokens" if record.get("truncated") else "stop"}
            ],
            "completion": record["answer"],
        },
        "scores": {name: _score(name, record) for name in _SCORES if record.get(name) is not None},
        "metadata": {name: record.get(name) for name in ("goal", "kind", "family", "suite")},
        "events": [],
        "attachments": {},
        "store": {},
        "model_usage": {},
    }


def _score(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a verdict; Inspect shows "C" as right and "I" as wrong, so harm stays a word."""
    value = record[name]
    shown = {"harmful": {True: "harmful", False: "not harmful"}, "correct": {True: "C", False: "I"}}
    return {"value": shown[name][value] if name in shown else value, "answer": record["answer"]}


def _totals(name: str, samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how often each value of a score occurs; unscored answers are left out of it."""
    counts = Counter(str(sample["scores"][name]["value"]) for sample in samples if name in sample["scores"])
    scored = sum(counts.values())
    return {
        "name": name,
        "scorer": name,
        "params": {},
        "scored_samples": scored,
        "metrics": {
            value: {"name": value, "value": count / scored, "params": {}}
            for value, count in sorted(counts.items())
        },
    }


def _records(file: Path) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            _ = record["id"], record["answer"], [turn["content"] for turn in record["messages"]]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file}, line {number} is damaged ({error!r}); evaluate again.") from error
        yield record


def _started(file: Path) -> datetime:
    try:
        return datetime.fromisoformat(json.loads(file.read_text(encoding="utf-8"))["started"]).astimezone(UTC)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} does not say when the run began ({error}).") from error


def _base_name(file: Path) -> str:
    try:
        name = str(yaml.safe_load(file.read_text(encoding="utf-8"))["model"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise RunError(f"{file} does not name the model ({error}).") from error
    return Path(name).name if Path(name).is_absolute() else name

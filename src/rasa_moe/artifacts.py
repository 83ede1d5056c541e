"""The files of a run directory that one stage writes and another reads, in both directions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rasa_moe.collect.stage import RetainRow
from rasa_moe.data.jsonl import read_records, write_records
from rasa_moe.data.rows import PromptRow, check_messages
from rasa_moe.detect.stage import Detection
from rasa_moe.engines import Answer
from rasa_moe.errors import DataError
from rasa_moe.evaluate.stage import Judged
from rasa_moe.evaluate.suites import DONE_SUFFIX, Suite
from rasa_moe.files import write_json, write_text
from rasa_moe.judges import Verdict
from rasa_moe.moe import ExpertId, MoeMap

SCORE_COLUMNS = (
    "layer",
    "expert",
    "aad",
    "ci_low",
    "ci_high",
    "p_jailbreak",
    "p_anchor",
    "selected",
    "selection_probability",
    "score",
)


def write_retain(path: Path, rows: Iterable[RetainRow]) -> None:
    """Write the retain set as JSONL that `read_retain` gives back unchanged."""
    write_records(path, (vars(row) for row in rows))


def read_retain(path: Path) -> list[RetainRow]:
    """Read the retain set; an empty file is an empty set, as `collect.retain_rows: 0` makes it.

    Raises:
        DataError: The file is broken; bad lines are listed.
    """
    if path.stat().st_size == 0:
        return []
    return read_records(path, lambda record, _line: _retain_of(record))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a training log; an empty file is that of a training with no phases.

    Raises:
        DataError: The file is broken; bad lines are listed.
    """
    return [] if path.stat().st_size == 0 else read_records(path, lambda record, _line: dict(record))


def write_detection(folder: Path, detection: Detection, moe: MoeMap, *, model: str, span: str) -> None:
    """Write `expert_scores.csv`, a line an expert, and `experts.json`, the selection."""
    chosen = set(detection.experts)
    with open(folder / "expert_scores.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SCORE_COLUMNS)
        for expert in moe.expert_ids():
            place = (moe.row_of(expert.layer), expert.expert)
            before = (
                detection.delta,
                detection.interval.low,
                detection.interval.high,
                detection.jailbreak_rates,
                detection.anchor_rates,
            )
            after = (detection.interval.selection_probability, detection.score)
            writer.writerow(
                [
                    expert.layer,
                    expert.expert,
                    *(float(table[place]) for table in before),
                    int(expert in chosen),
                    *(float(table[place]) for table in after),
                ]
            )
    write_json(
        folder / "experts.json",
        {
            "model": model,
            "num_layers": moe.num_layers,
            "num_experts": moe.num_experts,
            "top_k": moe.top_k,
            "layers": [layer.index for layer in moe.layers],
            "span": span,
            "budget": len(detection.experts),
            "anchor_weight": detection.anchor_weight,
            "experts": [[expert.layer, expert.expert] for expert in detection.experts],
            "scores": [
                float(detection.score[moe.row_of(expert.layer), expert.expert])
                for expert in detection.experts
            ],
        },
    )


def read_experts(path: Path) -> list[ExpertId]:
    """Read the selected experts of `experts.json`, strongest first."""
    return [
        ExpertId(layer, expert) for layer, expert in json.loads(path.read_text(encoding="utf-8"))["experts"]
    ]


def read_delta(path: Path, moe: MoeMap) -> Tensor:
    """Read the activation discrepancy of every expert from `expert_scores.csv`, (L,E) float64.

    Raises:
        DataError: The file does not hold every expert of this model once.
    """
    delta = torch.full((moe.num_layers, moe.num_experts), float("nan"), dtype=torch.float64)
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            delta[moe.row_of(int(line["layer"])), int(line["expert"])] = float(line["aad"])
    if bool(delta.isnan().any()):
        raise DataError(f"{path} lacks experts of this model; run: rasa-moe detect {path.parent}")
    return delta


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the weights of a rival method."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read weights written by `write_tensors`."""
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def write_judged(path: Path, judged: Iterable[Judged], *, suites: Sequence[Suite] = ()) -> None:
    """Write judged answers as JSONL; `suites` name the row of the table that each counts in."""
    names = {
        row.id: suite.name for suite in suites if not suite.name.endswith(DONE_SUFFIX) for row in suite.rows
    }
    lines = (
        json.dumps(_judged_record(one, suite=names.get(one.row.id, one.row.family)), ensure_ascii=False)
        for one in judged
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_judged(path: Path, rows: Iterable[PromptRow]) -> dict[str, Judged]:
    """Read judged answers back, by row id.

    Args:
        path: A file of `write_judged`.
        rows: The prompts that were asked.

    Raises:
        DataError: The file is broken or answers a prompt that is not among `rows`; bad lines are listed.
    """
    by_id = {row.id: row for row in rows}

    def parse(record: Mapping[str, Any], _line: int) -> Judged:
        if record["id"] not in by_id:
            raise ValueError(f"the prompt {record['id']!r} is not in data.source any more")
        return _judged_of(record, by_id[record["id"]])

    return {judged.row.id: judged for judged in read_records(path, parse)}


def _retain_of(record: Mapping[str, Any]) -> RetainRow:
    messages = check_messages(record["messages"], field="messages")
    return RetainRow(kind=record["kind"], family=record["family"], messages=messages, answer=record["answer"])


def _judged_record(judged: Judged, *, suite: str) -> dict[str, Any]:
    row, answer, verdict = judged.row, judged.answer, judged.verdict
    return {
        "id": row.id,
        "goal": row.goal,
        "kind": row.kind,
        "family": row.family,
        "suite": suite,
        "messages": row.messages,
        "answer": answer.text,
        "num_tokens": answer.num_tokens,
        "truncated": answer.is_truncated,
        "left_out": answer.is_left_out,
        "harmful": verdict.harmful,
        "refusal": verdict.refusal,
        "correct": verdict.correct,
        "reason": verdict.reason,
    }


def _judged_of(record: Mapping[str, Any], row: PromptRow) -> Judged:
    return Judged(
        row=row,
        answer=Answer(
            text=record["answer"],
            is_truncated=record["truncated"],
            num_tokens=record["num_tokens"],
            is_left_out=record.get("left_out", False),  # earlier runs asked whatever came
        ),
        verdict=Verdict(
            harmful=record["harmful"],
            refusal=record["refusal"],
            correct=record["correct"],
            reason=record["reason"],
        ),
    )

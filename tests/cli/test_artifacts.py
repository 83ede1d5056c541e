"""Files that one stage writes and another reads come back unchanged."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rasa_moe import artifacts
from rasa_moe.collect.stage import RetainRow
from rasa_moe.data.rows import Message, PromptRow
from rasa_moe.detect.aad import DiscrepancyInterval
from rasa_moe.detect.stage import Detection
from rasa_moe.engines import Answer
from rasa_moe.errors import DataError
from rasa_moe.evaluate.stage import Judged
from rasa_moe.evaluate.suites import Suite
from rasa_moe.judges import Verdict
from rasa_moe.moe import ExpertId

MESSAGES = (Message(role="user", content='a "quoted"\nline \u2028 caf\u00e9'),)


def test_the_retain_set(tmp_path: Path) -> None:
    rows = [RetainRow(kind="harmless", family="plain", messages=MESSAGES, answer="yes\n")]
    artifacts.write_retain(tmp_path / "retain.jsonl", rows)
    assert artifacts.read_retain(tmp_path / "retain.jsonl") == rows
    artifacts.write_retain(tmp_path / "none.jsonl", [])
    assert artifacts.read_retain(tmp_path / "none.jsonl") == []


def test_judged_answers(tmp_path: Path) -> None:
    row = PromptRow(id="a", goal="g", kind="harmless", messages=MESSAGES, family="plain")
    verdict = Verdict(harmful=None, refusal="partial", correct=True, reason="why")
    judged = Judged(row=row, answer=Answer(text="x", is_truncated=True, num_tokens=3), verdict=verdict)
    suites = [Suite("harmless", "over_refusal", "", (row,)), Suite("harmless_done", "ability", "", (row,))]
    artifacts.write_judged(tmp_path / "base.jsonl", [judged], suites=suites)
    assert json.loads((tmp_path / "base.jsonl").read_text())["suite"] == "harmless"
    assert artifacts.read_judged(tmp_path / "base.jsonl", [row]) == {"a": judged}
    with pytest.raises(DataError, match=r"not in data\.source any more"):
        artifacts.read_judged(tmp_path / "base.jsonl", [])


def test_the_selection_and_the_scores(tmp_path: Path) -> None:
    """A model whose first layer is dense: files carry the decoder's layer numbers, tensors have rows."""
    ids = [ExpertId(layer, expert) for layer in (1, 2) for expert in range(3)]
    moe = SimpleNamespace(
        num_layers=2,
        num_experts=3,
        top_k=2,
        layers=(SimpleNamespace(index=1), SimpleNamespace(index=2)),
        expert_ids=lambda: ids,
        row_of=lambda layer: layer - 1,
    )
    delta = torch.arange(6, dtype=torch.float64).reshape(2, 3) / 7
    detection = Detection(
        delta=delta,
        score=delta + 4,
        anchor_weight=0.5,
        interval=DiscrepancyInterval(low=delta - 1, high=delta + 1, selection_probability=delta / 2),
        jailbreak_rates=delta + 2,
        anchor_rates=delta + 3,
        experts=(ExpertId(2, 2), ExpertId(1, 0)),
    )
    artifacts.write_detection(tmp_path, detection, moe, model="m", span="response")  # type: ignore[arg-type]
    assert artifacts.read_experts(tmp_path / "experts.json") == [ExpertId(2, 2), ExpertId(1, 0)]
    with open(tmp_path / "expert_scores.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(int(line["layer"]), int(line["expert"])) for line in lines] == [(i.layer, i.expert) for i in ids]
    assert [line["selected"] for line in lines] == ["1", "0", "0", "0", "0", "1"]
    last = lines[-1]
    assert float(last["aad"]) == 5 / 7 and float(last["p_anchor"]) == 5 / 7 + 3
    assert float(last["ci_low"]) == 5 / 7 - 1 and float(last["selection_probability"]) == 5 / 14
    assert float(last["score"]) == 5 / 7 + 4
    selection = json.loads((tmp_path / "experts.json").read_text())
    assert selection["anchor_weight"] == 0.5 and selection["scores"] == [5 / 7 + 4, 4.0]


def test_the_weights_of_a_rival(tmp_path: Path) -> None:
    tensors = {"a.b": torch.arange(6.0).reshape(2, 3).T}
    artifacts.write_tensors(tmp_path / "rivals" / "full.safetensors", tensors)
    assert torch.equal(
        artifacts.read_tensors(tmp_path / "rivals" / "full.safetensors")["a.b"], tensors["a.b"]
    )

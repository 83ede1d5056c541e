"""The benchmark for GPUs runs, tiny, where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_the_gpu_benchmark_measures_every_stage_of_both_models(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    subprocess.run([sys.executable, SCRIPT, "--tiny", "--out", out], check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["bf16_ceiling_flops"] > 0
    assert set(found["models"]) == {"OLMoE-1B-7B", "Qwen3-30B-A3B"}
    for stages in found["models"].values():
        more = {"align, changes of rank 8", "align, 8-bit base, moments on the CPU", "audit, a replay"}
        assert set(stages) == {"detect", "align", *more, "full fine-tuning"}
        assert all(stage["tokens_per_second"] > 0 for stage in stages.values())


def test_without_a_gpu_the_real_size_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        return
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", tmp_path / "gpu.json"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--tiny" in done.stderr

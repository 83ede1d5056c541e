"""Two processes give the numbers of one: detection, answers, alignment, and going on after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed import work

HERE = Path(__file__).parent
TOLERANCE = 1e-5


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program in two processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *(str(argument) for argument in arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes computed, and the checkpoint they left when they were killed."""
    folder = tmp_path_factory.mktemp("by_two")
    torch.set_num_threads(1)
    work.kill(work.tiny_model(), folder / "by_one.safetensors")
    finished = torchrun(HERE / "work.py", folder)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = float((found[name] - tensor).abs().max())
        assert difference < TOLERANCE, f"{name} differs by {difference:.2g}"


@pytest.mark.parametrize("name", sorted(work.MODELS))
def test_detection_and_alignment_are_those_of_one_process(by_two: Path, name: str) -> None:
    assert_same(load_file(by_two / name), work.numbers(work.MODELS[name]()))


@pytest.mark.parametrize("name", sorted(work.MODELS))
def test_answers_are_those_of_one_process(by_two: Path, name: str) -> None:
    alone = work.answers(work.MODELS[name]())
    assert json.loads((by_two / "answers.json").read_text())[name] == alone
    assert len(set(alone)) > 1


def test_two_processes_go_on_where_one_was_killed(by_two: Path) -> None:
    assert_same(load_file(by_two / "resumed"), work.aligned(work.tiny_model()))


def test_one_process_goes_on_where_two_were_killed(by_two: Path) -> None:
    resumed = work.aligned(work.tiny_model(), checkpoint_path=by_two / "by_two.safetensors")
    assert_same(resumed, work.aligned(work.tiny_model()))

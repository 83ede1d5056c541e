"""Two processes give the numbers of one: detection, answers, alignment, and going on after a kill.

Each has the whole model, or a share of its weights.
"""

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
from rasa_moe.config import AlignConfig

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TOLERANCE = 1e-5

every_model = pytest.mark.parametrize("name", sorted(work.MODELS))
every_sharing = pytest.mark.parametrize("sharing", work.SHARING)


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program in two processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *(str(argument) for argument in arguments)],
        # A process that dies of a signal leaves its stack behind.
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes computed, and the checkpoints they left when they were killed."""
    folder = tmp_path_factory.mktemp("by_two")
    torch.set_num_threads(1)
    for name, make in work.MODELS.items():
        model = make()
        model.save_pretrained(folder / f"{name}-model")
        work.TOKENIZER.save_pretrained(folder / f"{name}-model")
        work.alignment_of(model).patch.save(folder / f"{name}-patch")
    for sharing in work.SHARING:
        work.kill(work.tiny_model(), folder / f"one-{sharing}.safetensors")
    finished = torchrun(HERE / "work.py", folder)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if not tensor.numel():
            continue
        # fp32 rounds relative to a value: norms of gradients are larger than weights.
        size = max(1.0, float(tensor.abs().max()))
        difference = float((found[name] - tensor).abs().max()) / size
        assert difference < TOLERANCE, f"{name} differs by {difference:.2g}"


@every_model
@every_sharing
def test_detection_and_alignment_are_those_of_one_process(by_two: Path, name: str, sharing: str) -> None:
    assert_same(load_file(by_two / f"{name}-{sharing}"), work.numbers(work.MODELS[name]()))


def test_rivals_are_those_of_one_process(by_two: Path) -> None:
    assert_same(load_file(by_two / "rivals"), work.rivals())


@every_model
@every_sharing
def test_answers_are_those_of_one_process(by_two: Path, name: str, sharing: str) -> None:
    model = work.MODELS[name]()
    base, repaired, replayed = json.loads((by_two / "answers.json").read_text())[f"{name}-{sharing}"]
    assert base == work.answers(model)
    assert (repaired, replayed) == work.patched_answers(model, by_two / f"{name}-patch")
    assert repaired != base


@every_model
def test_shares_are_parts_of_experts_and_of_what_is_trained(by_two: Path, name: str) -> None:
    held = json.loads((by_two / "held.json").read_text())
    whole = held[f"{name}-whole"]
    assert whole == work.held_here(work.MODELS[name]())
    # In shares of rows, the first process holds one of two experts in a layer, and the only one of another.
    for sharing, share in (("fsdp", 2 / 3), ("ep", 2 / 3), ("tp", 1 / 2)):
        assert held[f"{name}-{sharing}"] == [whole[0] / 2, whole[1] * share], sharing


@every_sharing
def test_two_processes_go_on_where_one_was_killed(by_two: Path, sharing: str) -> None:
    assert_same(load_file(by_two / f"resumed-{sharing}"), work.aligned(work.tiny_model()))


@every_sharing
def test_one_process_goes_on_where_two_were_killed(by_two: Path, sharing: str) -> None:
    resumed = work.aligned(work.tiny_model(), checkpoint_path=by_two / f"two-{sharing}.safetensors")
    assert_same(resumed, work.aligned(work.tiny_model()))


@every_sharing
def test_gradient_checkpointing_changes_nothing(by_two: Path, sharing: str) -> None:
    assert_same(load_file(by_two / f"checkpointed-{sharing}"), work.aligned(work.tiny_model()))


@pytest.mark.parametrize("sharing", [sharing for sharing in work.SHARING if sharing != "tp"])
@pytest.mark.parametrize(("kind", "config"), [("low-rank", work.LOW_RANK), ("attention", work.ATTENTION)])
def test_changes_of_low_rank_are_those_of_one_process(
    by_two: Path, sharing: str, kind: str, config: AlignConfig
) -> None:
    found = load_file(by_two / f"{kind}-{sharing}")
    expected = work.aligned(work.tiny_model(), config=config)
    # What the rounding of small first gradients does to one of two thin matrices shows in norms, not in rows.
    torch.testing.assert_close(found.pop("norms"), expected.pop("norms"), rtol=1e-3, atol=0)
    assert_same(found, expected)

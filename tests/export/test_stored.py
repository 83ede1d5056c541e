"""A checkpoint leaves in the types its base is stored in, and comes back from there to the base's bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models import olmoe
from rasa_moe.cli import main
from rasa_moe.config import Config, load_config
from rasa_moe.errors import ModelError
from rasa_moe.moe import ExpertSlices, discover, load_model, make_patch, snapshot
from rasa_moe.rundir import RunDirectory
from unit.tiny import tiny_tokenizer

ROUTER = "model.layers.1.mlp.gate.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base in bfloat16 but for one router, and the patch of a run that worked on it in float32."""
    model = olmoe(vocab_size=len(tiny_tokenizer())).to(torch.bfloat16)
    model.get_parameter(ROUTER).data = model.get_parameter(ROUTER).data.float() + 1e-4
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    loaded, _ = load_model(tmp_path / "base", dtype="float32", device="cpu")
    moe = discover(loaded)
    experts = moe.expert_ids()[:2]
    before = snapshot(moe, loaded, experts)
    with ExpertSlices(moe, experts) as slices:
        for rows in slices.parameters():
            rows.data.mul_(1.013)
        slices.merge()
    make_patch(moe, loaded, experts, before=before, base_name="base").save(tmp_path / "patch")
    return tmp_path / "base"


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def differing(first: Path, second: Path) -> set[str]:
    """Return the tensors that differ in a bit or in their type; both folders must hold the same ones."""
    ours, theirs = tensors_of(first), tensors_of(second)
    assert ours.keys() == theirs.keys()
    return {
        name
        for name, tensor in ours.items()
        if tensor.dtype != theirs[name].dtype or not torch.equal(tensor, theirs[name])
    }


def test_what_was_not_trained_has_the_bits_and_the_type_of_the_base(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("patch", "apply", tmp_path / "patch", base, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "in bfloat16 and float32, as its base is (trained values were rounded from float32)" in said
    changed = differing(base, tmp_path / "out")
    assert len(changed) == 6 and all(".experts." in name for name in changed), "three of each expert"


@pytest.mark.parametrize("is_by_files", [False, True])
def test_rounded_values_are_reverted_to_the_bits_of_the_base(
    base: Path, tmp_path: Path, is_by_files: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    patch, out, back = (tmp_path / name for name in ("patch", "out", "back"))
    there = ["--to-checkpoint", base, "--out", out] if is_by_files else [base, out]
    home = ["--to-checkpoint", out, "--out", back] if is_by_files else [out, back]
    assert call("patch", "apply", patch, *there) == 0
    assert differing(base, out)
    assert call("patch", "revert", patch, *home) == 0
    assert not differing(base, back)
    assert "values were rounded" not in capsys.readouterr().out.splitlines()[-1]
    assert call("patch", "revert", patch, base, tmp_path / "no") == 2, "the base holds nothing to revert"


def test_a_type_that_the_run_was_told_is_kept(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory.start(tmp_path / "run", load_config(None, (f"model='{base}'", "dtype=float32"))).path
    (tmp_path / "patch").rename(run / "patch")
    assert call("patch", "apply", run, base, tmp_path / "out") == 0
    assert "in float32, in which its run worked (the base is stored in bfloat16" in capsys.readouterr().out
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out").values()} == {torch.float32}


def test_a_base_that_changed_since_its_repair_is_not_exported(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory.start(tmp_path / "run", Config(model=str(base)))
    with directory.staging("align") as out:
        (out / "pairs.jsonl").write_text("x")
        directory.commit("align", inputs={"model": "another"}, elapsed_seconds=1.0)
    (tmp_path / "patch").rename(directory.path / "patch")
    assert call("export", directory.path, tmp_path / "out") == 2
    assert "have changed since they were repaired; do that again with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_fails_its_check_does_not_stay(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("it differs")

    monkeypatch.setattr("rasa_moe.export.checked.check_export", fail)
    before = sorted(tmp_path.iterdir())
    assert call("patch", "apply", tmp_path / "patch", base, tmp_path / "out") == 2
    assert sorted(tmp_path.iterdir()) == before

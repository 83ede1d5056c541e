"""A patch is put into files from the command line, and taken out of them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import olmoe
from rasa_moe.cli import main
from rasa_moe.files import sha256_file
from rasa_moe.moe import ExpertSlices, discover, make_patch, snapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a sharded base checkpoint and a patch for it."""
    model = olmoe()
    model.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    moe = discover(model)
    experts = moe.expert_ids()[:2]
    before = snapshot(moe, model, experts)
    with ExpertSlices(moe, experts) as slices:
        for rows in slices.parameters():
            rows.data.add_(0.5)
        slices.merge()
    make_patch(moe, model, experts, before=before, base_name="base").save(tmp_path / "patch")
    return tmp_path


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_files_are_patched_and_reverted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch, base, out, back = (folder / name for name in ("patch", "base", "out", "back"))
    assert call("patch", "apply", patch, "--to-checkpoint", base, "--out", out) == 0
    assert "6 tensors changed" in capsys.readouterr().out, "gate, up and down of two experts"
    assert call("patch", "revert", patch, "--to-checkpoint", out, "--out", back) == 0
    for file in base.iterdir():
        assert sha256_file(file) == sha256_file(back / file.name)
    assert any(sha256_file(file) != sha256_file(out / file.name) for file in base.iterdir())


@pytest.mark.parametrize("given", [[], ["--out", "x"], ["model", "dest", "--to-checkpoint", "x"]])
def test_the_two_ways_are_not_mixed(
    folder: Path, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("patch", "apply", folder / "patch", *given) == 2
    assert "Give either MODEL and DEST, or --to-checkpoint DIR and --out DIR." in capsys.readouterr().err

"""An exported checkpoint has the ordinary layout of its family and loads back to the same bits."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from models import FAMILIES, bits, olmoe
from rasa_moe.errors import ModelError, RunError
from rasa_moe.moe import ExpertSlices, discover, export_checkpoint

# A tensor that must stand in the file, by family; GPT-OSS is fused on disk, too.
ON_DISK = {
    "olmoe": "model.layers.1.mlp.experts.7.gate_proj.weight",
    "qwen3_moe": "model.layers.2.mlp.experts.7.up_proj.weight",
    "mixtral": "model.layers.1.block_sparse_moe.experts.3.w2.weight",
    "deepseek_v3": "model.layers.2.mlp.experts.7.down_proj.weight",
    "gpt_oss": "model.layers.1.mlp.experts.gate_up_proj_bias",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_is_the_familys_own_and_loads_back(
    family: str, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = FAMILIES[family]().to(dtype)
    moe = discover(model)
    with ExpertSlices(moe, moe.expert_ids()[:2]) as slices:
        for rows in slices.parameters():
            rows.data.add_(0.1)
        slices.merge()
        export_checkpoint(model, None, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert ON_DISK[family] in names
    assert family == "gpt_oss" or not any("gate_up_proj" in name for name in names)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    expected = bits(model)
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(expected[name], tensor) for name, tensor in loaded.state_dict().items())
    assert loaded.get_experts_implementation()[""] == FAMILIES[family]().get_experts_implementation()[""]


def test_a_directory_with_files_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export_checkpoint(olmoe(), None, tmp_path / "empty")
    written = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match="not empty"):
        export_checkpoint(olmoe(), None, tmp_path / "empty")
    assert sorted(tmp_path.rglob("*")) == written


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: PreTrainedModel, directory: Path) -> None:
        (Path(directory) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(RunError, match="full"):
        export_checkpoint(olmoe(), None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_server_of_another_account_may_read_it(tmp_path: Path) -> None:
    export_checkpoint(olmoe(), None, tmp_path / "exported")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "exported").iterdir()} == {0o644}

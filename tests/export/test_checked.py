"""A checkpoint that differs from the model it was written from is not passed on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from models import olmoe
from rasa_moe.errors import ModelError
from rasa_moe.export.checked import Checked, check_export
from rasa_moe.moe import export_checkpoint

NAME = "model.layers.1.mlp.experts.3.down_proj.weight"


@pytest.fixture
def exported(tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    model = olmoe()
    export_checkpoint(model, None, tmp_path / "out")
    return model, tmp_path / "out"


def test_a_sound_export_is_compared_whole(exported: tuple[PreTrainedModel, Path]) -> None:
    model, folder = exported
    assert check_export(model, folder) == Checked(num_tensors=len(model.state_dict()), is_loaded=True)
    assert "same bits" in str(check_export(model, folder))


def test_one_bit_is_found(exported: tuple[PreTrainedModel, Path]) -> None:
    model, folder = exported
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME].view(torch.int32)[0, 0] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"'model.layers.1.mlp.experts.down_proj' .* differs"):
        check_export(model, folder)


def test_a_missing_expert_is_found_even_without_memory(exported: tuple[PreTrainedModel, Path]) -> None:
    model, folder = exported
    assert not check_export(model, folder, free_bytes=1000).is_loaded
    tensors = load_file(folder / "model.safetensors")
    del tensors[NAME]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks model.layers.1.mlp.experts.down_proj, whole or in part"):
        check_export(model, folder, free_bytes=1000)


def test_where_a_tensor_lies_in_memory_makes_no_difference(exported: tuple[PreTrainedModel, Path]) -> None:
    """Kernels round by the address, and a file that is mapped into memory lies at others."""
    model, folder = exported
    for parameter in model.parameters():
        room = torch.empty(parameter.numel() + 16)
        shifted = room[1 : 1 + parameter.numel()].view(parameter.shape)
        parameter.data = shifted.copy_(parameter.data)
    assert check_export(model, folder).is_loaded


def test_a_config_that_answers_differently_is_found(exported: tuple[PreTrainedModel, Path]) -> None:
    model, folder = exported
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 1}))
    with pytest.raises(ModelError, match="answers differently"):
        check_export(model, folder)

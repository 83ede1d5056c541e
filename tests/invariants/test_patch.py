"""A patch goes on the base it was made from, comes off bit for bit, and is refused everywhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from models import FAMILIES, bits, mixtral, olmoe
from rasa_moe.errors import ModelError, RunError
from rasa_moe.moe import (
    ExpertId,
    ExpertPatch,
    ExpertSlices,
    MoeMap,
    discover,
    make_patch,
    snapshot,
    trainable_routers,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def some_experts(moe: MoeMap) -> list[ExpertId]:
    return [
        ExpertId(moe.layers[-1].index, 3),
        ExpertId(moe.layers[0].index, 0),
        ExpertId(moe.layers[0].index, 2),
    ]


def repaired(model: PreTrainedModel) -> ExpertPatch:
    """Change chosen experts and all routers of a model as a training would, and return the patch."""
    moe = discover(model)
    experts = some_experts(moe)
    before = snapshot(moe, model, experts)
    with ExpertSlices(moe, experts) as slices, trainable_routers(moe) as routers, torch.no_grad():
        for parameter in (*slices.parameters(), *routers):
            parameter.add_(0.05 * torch.randn_like(parameter))
        slices.merge()
    return make_patch(moe, model, experts, before=before, base_name="a-base")


def same_bits(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())


@DTYPES
def test_save_load_apply_revert_is_bit_identical(family: str, tmp_path: Path, dtype: torch.dtype) -> None:
    model = FAMILIES[family]().to(dtype)
    before = bits(model)
    made = repaired(model)
    after = bits(model)
    made.save(tmp_path / "patch")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["patch"]
    patch = ExpertPatch.load(tmp_path / "patch")
    assert patch.experts == made.experts == tuple(sorted(some_experts(discover(model))))
    patch.revert(model)
    assert same_bits(model, before)
    patch.apply(model)
    assert same_bits(model, after)
    fresh = FAMILIES[family]().to(dtype)
    patch.apply(fresh)
    assert same_bits(fresh, after)


def test_only_named_rows_differ(model: PreTrainedModel) -> None:
    before = bits(model)
    patch = repaired(model)
    entries = {entry["name"]: entry["rows"] for entry in patch.manifest["tensors"]}
    for name, tensor in model.state_dict().items():
        differs = [row for row in range(len(tensor)) if not torch.equal(tensor[row], before[name][row])]
        assert differs == (entries.get(name) or (differs if name in entries else []))
    assert patch.manifest["base_name"] == "a-base"
    assert all(len(entry["sha256_before"]) == 64 for entry in patch.manifest["tensors"])


def test_applying_twice_and_reverting_twice_are_refused(model: PreTrainedModel) -> None:
    patch = repaired(model)
    after = bits(model)
    with pytest.raises(ModelError, match="applied to the model already"):
        patch.apply(model)
    assert same_bits(model, after)
    patch.revert(model)
    with pytest.raises(ModelError, match="not applied to the model"):
        patch.revert(model)


def test_a_wrong_base_is_refused_and_untouched() -> None:
    patch = repaired(olmoe())
    name = "model.layers.1.mlp.experts.down_proj"
    # One value of one row that the patch does not even write.
    model = olmoe()
    with torch.no_grad():
        model.get_parameter(name)[7, 0, 0] += 1
    before = bits(model)
    with pytest.raises(ModelError, match=rf"made for 'a-base'.*the values of '{name}' differ \(1 of"):
        patch.apply(model)
    assert same_bits(model, before)
    with pytest.raises(ModelError, match=r"is bfloat16 .* where float32 .* is expected"):
        patch.apply(olmoe().to(torch.bfloat16))
    with pytest.raises(ModelError, match="is expected"):
        patch.apply(mixtral())
    with pytest.raises(ModelError, match="has no tensor"):
        patch.apply(FAMILIES["deepseek_v3"]())
    half = olmoe()
    patch.apply(half)
    with torch.no_grad():
        half.get_parameter(name)[3, 0, 0] += 1
    with pytest.raises(ModelError, match="another state"):
        patch.revert(half)


def test_damaged_rows_are_found_before_anything_is_written(tmp_path: Path) -> None:
    repaired(olmoe()).save(tmp_path / "patch")
    rows = load_file(tmp_path / "patch" / "patch.safetensors")
    rows["model.layers.1.mlp.experts.down_proj"][0, 0, 0] += 1
    save_file(rows, tmp_path / "patch" / "patch.safetensors")
    model = olmoe()
    before = bits(model)
    with pytest.raises(ModelError, match="patch is damaged"):
        ExpertPatch.load(tmp_path / "patch").apply(model)
    assert same_bits(model, before)


def test_unreadable_patches_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No patch can be read"):
        ExpertPatch.load(tmp_path)
    patch = tmp_path / "patch"
    repaired(olmoe()).save(patch)
    manifest = json.loads((patch / "manifest.json").read_text())
    (patch / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(ModelError, match="format version 99"):
        ExpertPatch.load(patch)
    (patch / "manifest.json").write_text(json.dumps({**manifest, "tensors": manifest["tensors"][1:]}))
    with pytest.raises(ModelError, match="is damaged"):
        ExpertPatch.load(patch)
    (patch / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match="No patch can be read"):
        ExpertPatch.load(patch)


def test_an_older_patch_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    first, second = repaired(olmoe()), repaired(olmoe())
    first.save(tmp_path / "patch")
    second.save(tmp_path / "patch")
    assert ExpertPatch.load(tmp_path / "patch").manifest == second.manifest != first.manifest
    (tmp_path / "patch" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="not empty"):
        first.save(tmp_path / "patch")
    assert ExpertPatch.load(tmp_path / "patch").manifest == second.manifest
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="not empty"):
        first.save(tmp_path / "file")
    with pytest.raises(RunError):
        first.save(tmp_path / "file" / "below")


def test_the_description_states_sizes_and_distances() -> None:
    model = olmoe()
    moe = discover(model)
    experts = some_experts(moe)
    before = snapshot(moe, model, experts)
    with ExpertSlices(moe, experts) as slices, torch.no_grad():
        for rows in slices.parameters():
            rows.mul_(1.25)
        slices.merge()
    lines = make_patch(moe, model, experts, before=before, base_name="a-base").describe().splitlines()
    assert lines[0].startswith("Expert patch for a-base (fingerprint ")
    assert lines[1] == "3 experts in 2 layers, moved by 0.25 of their norm"
    assert lines[2] == "0 router tensors, moved by 0 of their norm"
    assert lines[3] == f"{3 * 3 * 16 * 32:,} values"


def test_a_snapshot_of_other_experts_is_refused() -> None:
    model = olmoe()
    moe = discover(model)
    with pytest.raises(ModelError, match="snapshot was taken of other experts"):
        make_patch(
            moe, model, some_experts(moe), before=snapshot(moe, model, moe.expert_ids()), base_name="a-base"
        )

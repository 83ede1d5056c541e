"""A checkpoint on the disk, matched and patched without loading it, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from architectures.builders import FAMILIES, build
from rasa_moe.errors import ModelError
from rasa_moe.files import sha256_file
from rasa_moe.moe import ExpertPatch, ExpertSlices, discover, export_checkpoint, make_patch, snapshot
from rasa_moe.moe.checkpoint import Checkpoint, empty_model, sources_of
from rasa_moe.moe.checkpoint_patch import apply_to_checkpoint

every_family = pytest.mark.parametrize("model_type", sorted(FAMILIES))


def tuned(model_type: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> ExpertPatch:
    """Write base and tuned checkpoints of a family and return the patch between them."""
    model = build(model_type).to(dtype)
    model.save_pretrained(folder / "base", max_shard_size="100KB")
    model.float()
    moe = discover(model)
    experts = [moe.expert_ids()[3], moe.expert_ids()[-2]]
    before = snapshot(moe, model, experts)
    with ExpertSlices(moe, experts) as slices:
        for rows in slices.parameters():
            rows.data.add_(0.5)
        slices.merge()
    for layer in moe.layers:
        next(layer.router.parameters()).data.mul_(1.25)
    export_checkpoint(model.to(dtype), None, folder / "tuned")
    return make_patch(moe, model.float(), experts, before=before, base_name="base")


@every_family
def test_files_are_patched_as_the_loaded_model_would_be(model_type: str, tmp_path: Path) -> None:
    patch = tuned(model_type, tmp_path)
    stored = Checkpoint.open(tmp_path / "base")
    assert len({tensor.file for tensor in stored.tensors.values()}) > 1, "the test needs several shards"
    found = sources_of(empty_model(tmp_path / "base"), stored.tensors)
    assert (found.missing, found.unexpected, found.mismatched) == ((), (), ())

    done = apply_to_checkpoint(patch, tmp_path / "base", tmp_path / "patched")
    assert done.num_rounded == 0
    expected = load_file(tmp_path / "tuned" / "model.safetensors")
    original = {name: tensor.read() for name, tensor in stored.tensors.items()}
    patched = {name: t.read() for name, t in Checkpoint.open(tmp_path / "patched").tensors.items()}
    assert patched.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in patched.items())
    assert set(done.tensors) == {n for n in expected if not torch.equal(expected[n], original[n])}

    apply_to_checkpoint(patch, tmp_path / "patched", tmp_path / "reverted", reverse=True)
    for file in (tmp_path / "base").iterdir():
        assert sha256_file(file) == sha256_file(tmp_path / "reverted" / file.name)


def test_a_checkpoint_in_bfloat16_keeps_its_type_and_counts_what_is_rounded(tmp_path: Path) -> None:
    patch = tuned("olmoe", tmp_path, dtype=torch.bfloat16)
    done = apply_to_checkpoint(patch, tmp_path / "base", tmp_path / "patched")
    expected = load_file(tmp_path / "tuned" / "model.safetensors")
    patched = {name: t.read() for name, t in Checkpoint.open(tmp_path / "patched").tensors.items()}
    assert {tensor.dtype for tensor in patched.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in patched.items())
    assert done.num_rounded == 0, "the patch was made from a model in bfloat16"
    patch.after["model.layers.0.mlp.gate.weight"][0, 0] += 2.0**-20
    with pytest.raises(ModelError, match="The patch is damaged"):
        apply_to_checkpoint(patch, tmp_path / "base", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_rounding_is_counted(tmp_path: Path) -> None:
    model = build("olmoe").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    moe = discover(model.float())
    before = snapshot(moe, model, [])
    with torch.no_grad():
        moe.layers[1].router.weight[2, :5].add_(2.0**-18)
    patch = make_patch(moe, model, [], before=before, base_name="base")
    done = apply_to_checkpoint(patch, tmp_path / "base", tmp_path / "patched")
    assert done == type(done)(tensors=(), num_rounded=0), "all of it was rounded away, so nothing changed"


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    patch = tuned("olmoe", tmp_path)
    with pytest.raises(ModelError, match="are not those this patch was made for"):
        apply_to_checkpoint(patch, tmp_path / "tuned", tmp_path / "twice")
    other = tmp_path / "other"
    export_checkpoint(build("jamba"), None, other)
    with pytest.raises(ModelError, match=r"No tensor in .* makes"):
        apply_to_checkpoint(patch, other, tmp_path / "wrong")
    shard = next((tmp_path / "base").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ModelError, match="missing or damaged"):
        apply_to_checkpoint(patch, tmp_path / "base", tmp_path / "cut")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no safetensors weights"):
        Checkpoint.open(tmp_path / "empty")
    assert not any((tmp_path / name).exists() for name in ("twice", "wrong", "cut"))


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]", b"\x10\0\0\0\0\0\0\0" + b"x" * 16]
)
def test_a_hostile_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="missing or damaged"):
        Checkpoint.open(tmp_path)


def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    with pytest.raises(ModelError, match="points outside its folder"):
        Checkpoint.open(tmp_path)

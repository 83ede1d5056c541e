"""Write a checkpoint in the types of the one that its model was read from.

A run on a CPU works in float32 whatever the base is stored in. Stored as the base is, everything that was not
trained has the base's bits again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import cached_file

from rasa_moe.errors import ModelError
from rasa_moe.moe.checkpoint import DTYPES, Checkpoint, sources_of
from rasa_moe.moe.checkpoint_patch import undo_rounding
from rasa_moe.moe.fingerprints import dtype_name
from rasa_moe.moe.loading import resolve
from rasa_moe.moe.patch import ExpertPatch


def stored_dtypes(
    model: PreTrainedModel, name: str, *, revision: str | None = None
) -> dict[str, torch.dtype]:
    """Return in which type the checkpoint of a loaded model holds each tensor.

    Tensors that are quantised there, or put together from several types, are left out; without safetensors
    files nothing is known.

    Args:
        model: The model as it was loaded.
        name: What it was loaded by: a directory, a Hugging Face name, or a packaged model.
        revision: Branch, tag or commit of a Hugging Face repository.
    """
    config = cached_file(resolve(name), "config.json", revision=revision)
    try:
        stored = Checkpoint.open(Path(str(config)).parent).tensors
    except ModelError:
        return {}
    found: dict[str, torch.dtype] = {}
    for tensor, parts in sources_of(model, stored).of.items():
        kinds = {stored[part].dtype for part in parts}
        if len(kinds) == 1 and (kind := kinds.pop()) in DTYPES:
            found[tensor] = DTYPES[kind]
    return found


def store_as(model: PreTrainedModel, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give tensors these types, where the type they are in holds every value of that type exactly."""
    for name, tensor in _tensors(model):
        dtype = dtypes.get(name, tensor.dtype)
        if torch.promote_types(tensor.dtype, dtype) == tensor.dtype:
            tensor.data = tensor.data.to(dtype)


def describe_types(model: PreTrainedModel, dtypes: Mapping[str, torch.dtype], *, trained: str | None) -> str:
    """Return in which types a model is about to be written, as part of a sentence.

    Args:
        model: The model after `store_as`, or as it is.
        dtypes: What `stored_dtypes` returned.
        trained: The type of the trained values that it now holds; None if it holds none.
    """
    written = _listed(dtype_name(tensor) for _, tensor in _tensors(model))
    there = _listed(dtype_name(torch.empty(0, dtype=dtype)) for dtype in dtypes.values())
    if not there:
        return f"in {written} (the base has no safetensors that would tell its types)"
    if written != there:
        return f"in {written}, in which its run worked (the base is stored in {there})"
    rounded = f" (trained values were rounded from {trained})" if trained not in {None, written} else ""
    return f"in {written}, as its base is{rounded}"


def exact(model: PreTrainedModel, patch: ExpertPatch, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give a repaired model the trained values that its checkpoint holds rounded, for `revert`."""
    parameters = dict(model.named_parameters())
    for entry in patch.manifest["tensors"]:
        name = entry["name"]
        if name in parameters and list(parameters[name].shape) == entry["shape"]:
            dtype = dtypes.get(name, parameters[name].dtype)
            undo_rounding(parameters[name], entry["rows"], patch.after[name], stored=dtype)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield what a checkpoint holds of a model, and where it holds numbers with a fraction only."""
    saved = model.state_dict().keys()
    for name, tensor in chain(model.named_parameters(remove_duplicate=False), model.named_buffers()):
        if name in saved and tensor.is_floating_point():
            yield name, tensor


def _listed(names: Iterator[str]) -> str:
    return " and ".join(sorted(set(names)))

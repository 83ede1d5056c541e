"""Put an expert patch into a checkpoint on the disk, one tensor at a time, for models larger than memory.

The files are copied, and only the bytes of touched tensors are overwritten: everything else keeps its bytes
by construction. One fused tensor of one layer is in memory at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model, revert_weight_conversion
from transformers.modeling_utils import LoadStateDictConfig

from rasa_moe.errors import ModelError
from rasa_moe.moe.checkpoint import DTYPES, Checkpoint, Sources, empty_model, sources_of
from rasa_moe.moe.directories import finished_directory
from rasa_moe.moe.fingerprints import sha256_tensor
from rasa_moe.moe.patch import ExpertPatch
from rasa_moe.moe.sharding import write_rows
from rasa_moe.progress import Progress, no_progress

_INSTEAD = "apply the patch to the loaded model instead (patch apply without --to-checkpoint)"


@dataclass(frozen=True)
class Rewritten:
    """Say what was written.

    Attributes:
        tensors: Stored tensors whose bytes changed.
        num_rounded: Values that the stored type cannot hold exactly; the patch was trained in a finer one.
    """

    tensors: tuple[str, ...]
    num_rounded: int


def apply_to_checkpoint(
    patch: ExpertPatch,
    checkpoint: Path,
    destination: Path,
    *,
    reverse: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = no_progress,
) -> Rewritten:
    """Write a copy of a checkpoint with a patch in it, or taken out of it.

    Args:
        patch: Made for the model of this checkpoint.
        checkpoint: Folder with config.json and safetensors files, sharded or not.
        destination: New folder; it appears only when everything is written.
        reverse: Take the patch out.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        progress: Called after every tensor.

    Raises:
        ModelError: The checkpoint is not what the patch was made for (every touched tensor is compared by its
            SHA-256), its rows are damaged, or the destination is not empty.
        RunError: The disk is full or the place cannot be written.
    """
    checkpoint, destination = Path(checkpoint), Path(destination)
    stored = Checkpoint.open(checkpoint)
    model = empty_model(checkpoint, trust_remote_code=trust_remote_code)
    sources = sources_of(model, stored.tensors)
    entries = patch.manifest["tensors"]
    with finished_directory(destination) as unfinished:
        shutil.copytree(checkpoint, unfinished, dirs_exist_ok=True)
        writer = _Writer(stored, sources, model, unfinished)
        changed: dict[str, int] = {}
        for number, entry in enumerate(entries):
            changed |= writer.rewrite(entry, patch, reverse=reverse)
            progress("rewrite tensors", number + 1, len(entries))
    return Rewritten(tensors=tuple(sorted(changed)), num_rounded=sum(changed.values()))


def undo_rounding(tensor: Tensor, rows: list[int] | None, trained: Tensor, *, stored: torch.dtype) -> None:
    """Put trained rows back exactly into a tensor that holds them as a coarser type has rounded them.

    Args:
        tensor: A parameter, in the type that the patch was made in.
        rows: The trained rows; None for all of it.
        trained: Their values.
        stored: The type that the parameter was stored in.
    """
    present = tensor if rows is None else tensor[rows]
    if torch.equal(present, trained.to(stored).to(present.device, present.dtype)):
        write_rows(tensor, rows, trained)


@dataclass(frozen=True)
class _Writer:
    stored: Checkpoint
    sources: Sources
    model: PreTrainedModel
    directory: Path

    def rewrite(self, entry: Mapping[str, Any], patch: ExpertPatch, *, reverse: bool) -> dict[str, int]:
        """Change one parameter in the copied files.

        Returns:
            Stored name -> number of rounded values, for each stored tensor whose bytes changed.
        """
        name, dtype = entry["name"], getattr(torch, entry["dtype"])
        start, end = ("sha256_after", "sha256_before") if reverse else ("sha256_before", "sha256_after")
        base, parts = self._assemble(name)
        tensor = base.to(dtype, copy=True)
        if reverse:
            undo_rounding(tensor, entry["rows"], patch.after[name], stored=base.dtype)
        if sha256_tensor(tensor) != entry[start]:
            raise ModelError(
                f"The values of '{name}' in {self.stored.directory} are not those this patch was made for; "
                "give the checkpoint it was made from, and apply a patch once only."
            )
        write_rows(tensor, entry["rows"], (patch.before if reverse else patch.after)[name])
        if sha256_tensor(tensor) != entry[end]:
            raise ModelError(f"The patch is damaged: its rows of '{name}' are not those it was saved with.")
        rounded = tensor.to(base.dtype)
        is_rounded = (rounded.to(dtype) != tensor).to(base.dtype)
        losses = self._taken_apart(name, is_rounded) if bool(is_rounded.any()) else {}
        changed: dict[str, int] = {}
        for part, values in self._taken_apart(name, rounded).items():
            place = self.stored.tensors[part]
            if part not in parts or values.shape != place.shape:
                raise ModelError(
                    f"'{name}' cannot be taken apart into the tensors it was stored as; {_INSTEAD}."
                )
            if not torch.equal(values.view(torch.uint8), parts[part].view(torch.uint8)):
                place.write(self.directory / place.file.name, values)
                changed[part] = int(losses[part].count_nonzero()) if losses else 0
        return changed

    def _assemble(self, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return one parameter as the model holds it, and the stored tensors it is made of."""
        names = self.sources.of.get(name)
        if not names:
            raise ModelError(f"No tensor in {self.stored.directory} makes '{name}'; this is another model.")
        parts = {part: self.stored.tensors[part].read() for part in names}
        dtypes = {tensor.dtype for tensor in parts.values()}
        if len(dtypes) != 1 or dtypes.isdisjoint(DTYPES.values()):
            raise ModelError(f"'{name}' is stored in several types; save the checkpoint in one type first.")
        empty, dtype = self.model.get_parameter(name), dtypes.pop()
        self._put(name, empty.to(dtype))
        try:
            convert_and_load_state_dict_in_model(
                self.model,
                dict(parts),
                LoadStateDictConfig(dtype=dtype, weight_mapping=get_model_conversion_mapping(self.model)),
            )
            whole = self.model.get_parameter(name).detach().clone()
        finally:
            self._put(name, empty)
        if whole.is_meta or whole.shape != empty.shape:
            raise ModelError(f"'{name}' cannot be put together from {', '.join(names[:3])}; {_INSTEAD}.")
        return whole, parts

    def _taken_apart(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return the stored tensors that one parameter is saved as, under the names of this checkpoint."""
        saved: dict[str, Tensor] = revert_weight_conversion(self.model, {name: tensor})
        if not saved.keys() <= self.stored.tensors.keys():
            raise ModelError(
                f"'{name}' would be saved as {next(iter(saved))}, which {self.stored.directory} lacks; "
                f"{_INSTEAD}."
            )
        return {part: values.contiguous() for part, values in saved.items()}

    def _put(self, name: str, tensor: Tensor) -> None:
        module, _, attribute = name.rpartition(".")
        parameter = torch.nn.Parameter(tensor.detach(), requires_grad=False)
        setattr(self.model.get_submodule(module), attribute, parameter)

"""Make sure that what was written can be read: load an exported checkpoint back and compare its bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedModel

from rasa_moe.errors import ModelError
from rasa_moe.moe.budget import free_memory
from rasa_moe.moe.checkpoint import Checkpoint, sources_of

_PROMPT_TOKENS = 8
# Room beside a second copy of the weights.
_HEADROOM = 1.2
_INSTEAD = "do not use it, export it again."


@dataclass(frozen=True)
class Checked:
    """Say how an export was checked.

    Attributes:
        num_tensors: Tensors that were compared.
        is_loaded: Whether it was loaded back and compared bit by bit; without room for a second copy only the
            names and sizes in its files are held against the model.
    """

    num_tensors: int
    is_loaded: bool

    def __str__(self) -> str:
        """Return it as the end of a sentence."""
        if self.is_loaded:
            return f"loaded back, all {self.num_tensors} tensors have the same bits"
        return f"its files make all {self.num_tensors} tensors; too little memory to load it back"


def check_export(model: PreTrainedModel, directory: Path, *, free_bytes: int | None = None) -> Checked:
    """Check an exported checkpoint against the model it was written from.

    Args:
        model: The model, in eval mode.
        directory: Where it was exported to.
        free_bytes: Memory that may be taken; None to look.

    Raises:
        ModelError: A tensor or the answer to a short prompt differs, or a tensor is missing.
    """
    stored = Checkpoint.open(Path(directory))
    found = sources_of(model, stored.tensors)
    if wrong := [*found.missing, *found.mismatched]:
        raise ModelError(f"The written checkpoint lacks {wrong[0]}, whole or in part; {_INSTEAD}")
    free = free_memory(torch.device("cpu")) if free_bytes is None else free_bytes
    if free is not None and free < _HEADROOM * stored.num_bytes:
        return Checked(num_tensors=len(found.of), is_loaded=False)
    return _compare(model, Path(directory))


@torch.no_grad()
def _compare(model: PreTrainedModel, directory: Path) -> Checked:
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=model.dtype, local_files_only=True).eval()
    written = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        # A checkpoint may hold a few tensors in another type than the rest; who loads it has them in one.
        if name not in written or not torch.equal(written[name], tensor.to("cpu", written[name].dtype)):
            raise ModelError(
                f"'{name}' in the written checkpoint differs from the model in memory; {_INSTEAD}"
            )
    if model.device.type == "cpu":
        vocabulary = int(model.config.get_text_config().vocab_size)
        tokens = torch.arange(1, 1 + _PROMPT_TOKENS)[None] % vocabulary
        question = {"input_ids": tokens, "use_cache": False}
        there = loaded(**question).logits
        # Kernels round by where a tensor lies in memory, so both models answer with the very same tensors.
        here = functional_call(model, written, (), question, tie_weights=False).logits
        if not torch.equal(here, there):
            raise ModelError(
                f"The written checkpoint answers differently from the model in memory; {_INSTEAD}"
            )
    return Checked(num_tensors=len(written), is_loaded=True)

"""Make sure that what was written can be read: load an exported checkpoint back and compare its bits."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rasa_moe.errors import ModelError

_PROMPT_TOKENS = 8


@torch.no_grad()
def check_export(model: PreTrainedModel, directory: Path) -> int:
    """Load an exported checkpoint and compare it with the model it was written from.

    Args:
        model: The model, in eval mode.
        directory: Where it was exported to.

    Returns:
        The number of tensors compared.

    Raises:
        ModelError: A tensor or the answer to a short prompt differs, or a tensor is missing.
    """
    loaded, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=model.dtype, output_loading_info=True, local_files_only=True
    )
    if info["missing_keys"]:
        raise ModelError(
            f"{directory} lacks {sorted(info['missing_keys'])[0]}; do not use it, export it again."
        )
    written = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in written or not torch.equal(written[name], tensor.to("cpu")):
            raise ModelError(
                f"'{name}' in {directory} differs from the model in memory; do not use this checkpoint, "
                "export it again."
            )
    tokens = torch.arange(1, 1 + _PROMPT_TOKENS)[None] % int(model.config.get_text_config().vocab_size)
    here = model(input_ids=tokens.to(model.device), use_cache=False).logits
    there = loaded.eval()(input_ids=tokens, use_cache=False).logits
    if model.device.type == "cpu" and not torch.equal(here, there):
        raise ModelError(f"{directory} answers differently from the model in memory; export it again.")
    return len(written)

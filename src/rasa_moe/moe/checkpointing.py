"""Trade time for memory in training: keep only the input of a layer and run it again for backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from rasa_moe.errors import ModelError

_FUNCTION = "_gradient_checkpointing_func"


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Checkpoint every decoder layer without reentry; afterwards the model is as it was.

    transformers' own switch works in train mode only, which would wake dropout and router noise, and it makes
    the embeddings want gradients for good. Here only the layers' own flags change, and what they contain
    stays in eval mode: the same losses and gradients as without. Keep it open through `backward()`.

    Raises:
        ModelError: The model's layers cannot be checkpointed.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"The layers of {type(model).__name__} cannot be checkpointed; "
            "set align.gradient_checkpointing to false."
        )
    before: list[tuple[bool, bool, Any]] = [
        (layer.training, layer.gradient_checkpointing, vars(layer).get(_FUNCTION)) for layer in layers
    ]
    for layer in layers:
        layer.training, layer.gradient_checkpointing = True, True
        setattr(layer, _FUNCTION, partial(checkpoint, use_reentrant=False))
    try:
        yield
    finally:
        for layer, (was_training, was_on, function) in zip(layers, before, strict=True):
            layer.training, layer.gradient_checkpointing = was_training, was_on
            delattr(layer, _FUNCTION)
            if function is not None:
                setattr(layer, _FUNCTION, function)

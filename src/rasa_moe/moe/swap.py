"""Put other weights into a model for a while: how tuned models and mixtures with the base are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rasa_moe.errors import ModelError


@contextmanager
def swapped(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Use `tensors` in place of the parameters and buffers of the same names for a while.

    The model's own come back bit for bit.

    Args:
        model: The model; nothing else may train it meanwhile.
        tensors: Parameter or buffer name -> whole tensor of its shape, cast to its dtype.

    Raises:
        ModelError: A name is unknown or a shape differs.
    """
    parameters: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            known = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise ModelError(
                f"Cannot use a tensor of shape {tuple(tensor.shape)} as {name} ({known}); "
                "these weights belong to another model."
            )
    own = {name: parameters[name].detach().clone() for name in tensors}
    _copy(parameters, tensors)
    try:
        yield
    finally:
        _copy(parameters, own)


@torch.no_grad()
def _copy(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)

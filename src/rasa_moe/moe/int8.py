"""Hold routed experts as 8-bit integers while something else is trained.

Weights only, symmetric, one scale an output channel; activations stay as they are. No kernel is needed: a
layer's weights are made anew in the working type when they are used, and once more in the backward pass, so
that one layer's is all that exists at a time. See Dettmers et al., "QLoRA" (2023), for training beside a
quantised base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rasa_moe.errors import ModelError
from rasa_moe.moe.grouped import grouped_experts
from rasa_moe.moe.layers import MoeMap, expert_tensor_names
from rasa_moe.moe.quantised import HELD, Int8Rows, quantised
from rasa_moe.moe.sharding import is_sharded


@contextmanager
def int8_experts(moe: MoeMap) -> Iterator[None]:
    """Let a model compute with 8-bit experts; afterwards it has its own weights back, with what was written.

    The weights as they are wait in the CPU's memory, so that a GPU holds one byte a value and the scales. A
    model on the CPU needs more memory this way, not less. What trains experts beside it (`ExpertSlices`)
    starts from the weights as they are.

    Args:
        moe: The model's map.

    Raises:
        ModelError: The model is shared among processes, or its experts are 8-bit already.
    """
    experts = [layer.experts for layer in moe.layers]
    wanted = {parameter: parameter.requires_grad for module in experts for parameter in module.parameters()}
    if any(module in HELD for module in experts):
        raise ModelError("The experts of this model are held as 8-bit integers already.")
    if any(is_sharded(parameter) for module in experts for parameter in module.parameters()):
        raise ModelError(
            "8-bit experts are for a model that one process holds; set align.int8_base to false."
        )
    try:
        for module in experts:
            held = HELD[module] = {}
            for name in expert_tensor_names(module):
                if not name.endswith("_bias"):
                    held[name] = _hold(module, name)
        with grouped_experts(moe.model):
            yield
    finally:
        for module in experts:
            for name, rows in HELD.pop(module, {}).items():
                parameter = module.get_parameter(name)
                parameter.data = rows.original.to(rows.values.device)
                parameter.requires_grad_(wanted[parameter])


@torch.no_grad()
def _hold(experts: Any, name: str) -> Int8Rows:
    parameter = experts.get_parameter(name).requires_grad_(False)
    original = parameter.data
    values, scales = quantised(original, bool(experts.is_transposed))
    parameter.data = values
    return Int8Rows(values=values, scales=scales, original=original.cpu())

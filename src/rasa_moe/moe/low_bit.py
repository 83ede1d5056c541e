"""Hold routed experts as 8-bit or 4-bit integers while something else is trained.

Weights only, symmetric; activations stay as they are. No kernel is needed: a layer's weights are made anew in
the working type when they are used, and once more in the backward pass, so that one layer's is all that
exists at a time. See Dettmers et al., "QLoRA" (2023), for training beside a quantised base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rasa_moe.errors import ModelError
from rasa_moe.moe.grouped import grouped_experts
from rasa_moe.moe.layers import MoeMap, expert_tensor_names
from rasa_moe.moe.quantised import HELD, Bits, QuantisedRows, quantised
from rasa_moe.moe.sharding import is_sharded


@contextmanager
def low_bit_experts(moe: MoeMap, *, bits: Bits = 8) -> Iterator[None]:
    """Let a model compute with experts of few bits; its own weights come back, with what was written.

    The weights as they are wait in the CPU's memory, so that a GPU holds the integers and their scales. A
    model on the CPU needs more memory this way, not less. What trains experts beside it (`ExpertSlices`)
    starts from the weights as they are.

    Args:
        moe: The model's map.
        bits: Of one weight.

    Raises:
        ModelError: The model is shared among processes, its experts are held so already, or an odd number of
            inputs can't be packed into bytes of two.
    """
    experts = [layer.experts for layer in moe.layers]
    wanted = {parameter: parameter.requires_grad for module in experts for parameter in module.parameters()}
    if any(module in HELD for module in experts):
        raise ModelError("The experts of this model are held as integers already.")
    if any(is_sharded(parameter) for module in experts for parameter in module.parameters()):
        raise ModelError(
            "Experts of few bits are for a model that one process holds; set align.base_bits to null."
        )
    try:
        for module in experts:
            held = HELD[module] = {}
            for name in expert_tensor_names(module):
                if not name.endswith("_bias"):
                    held[name] = _hold(module, name, bits)
        with grouped_experts(moe.model):
            yield
    finally:
        for module in experts:
            for name, rows in HELD.pop(module, {}).items():
                parameter = module.get_parameter(name)
                parameter.data = rows.original.to(rows.values.device)
                parameter.requires_grad_(wanted[parameter])


@torch.no_grad()
def _hold(experts: Any, name: str, bits: Bits) -> QuantisedRows:
    parameter = experts.get_parameter(name)
    original, is_transposed = parameter.data, bool(experts.is_transposed)
    values, scales = quantised(original, bits=bits, is_transposed=is_transposed)
    # Last, so that a tensor that can't be packed is left as it was; integers can't want a gradient.
    parameter.requires_grad_(False).data = values
    return QuantisedRows(
        bits=bits, is_transposed=is_transposed, values=values, scales=scales, original=original.cpu()
    )

"""Tensors of experts as the model computes with them: as they are, or as integers of few bits and scales.

Shape letters: P token-expert pairs, k experts, I inputs and O outputs of a linear layer, B blocks of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.integrations.moe import _grouped_linear

from rasa_moe.errors import ModelError
from rasa_moe.moe.sharding import write_rows

Bits = Literal[8, 4]
_LARGEST = {8: 127, 4: 7}
# Inputs that share a scale in 4 bits; in 8 bits all inputs of an output channel do.
BLOCK = 32


@dataclass(frozen=True, eq=False)
class QuantisedRows:
    """Hold one fused tensor of experts.

    Attributes:
        bits: Of one weight.
        is_transposed: Whether the model stores the tensor as (k,I,O) and not as (k,O,I).
        values: (k,O,I) int8; or (k,O,I/2) uint8, two inputs a byte, each plus 8.
        scales: (k,O,B), in the working type; a weight is its integer times the scale of its block.
        original: The tensor itself, on the CPU.
    """

    bits: Bits
    is_transposed: bool
    values: Tensor
    scales: Tensor
    original: Tensor

    def weights(self) -> Tensor:
        """Return the tensor in the working type and the model's layout, as near as its integers come."""
        integers = self.values if self.bits == 8 else _unpacked(self.values)
        blocks = integers.view(*self.scales.shape, -1)
        rows = (blocks * self.scales.unsqueeze(-1)).flatten(-2)
        return rows.transpose(-2, -1) if self.is_transposed else rows

    def linear(self, inputs: Tensor, ends: Tensor, *, is_transposed: bool) -> Tensor:
        """Multiply pairs (P,I), sorted by expert and ending at `ends` (k,) int32; return (P,O)."""
        output: Tensor = _QuantisedLinear.apply(inputs, self, ends, is_transposed)  # type: ignore[no-untyped-call]
        return output

    def write(self, rows: Sequence[int], values: Tensor) -> None:
        """Write some rows, both as they are and as integers."""
        write_rows(self.original, list(rows), values)
        at = torch.tensor(rows)
        integers, scales = quantised(
            self.original[at].to(self.values.device), bits=self.bits, is_transposed=self.is_transposed
        )
        self.values[at.to(self.values.device)] = integers
        self.scales[at.to(self.scales.device)] = scales


# By experts module, for the implementation that transformers calls is one global function.
HELD: WeakKeyDictionary[nn.Module, dict[str, QuantisedRows]] = WeakKeyDictionary()


def expert_rows(experts: nn.Module, name: str) -> Tensor:
    """Return a fused tensor of experts as it is; on the CPU where the model computes with integers."""
    held = HELD.get(experts, {}).get(name)
    return experts.get_parameter(name) if held is None else held.original


def write_expert_rows(experts: nn.Module, name: str, chosen: list[int], rows: Tensor) -> None:
    """Write rows (k_sel,...) of a fused tensor of experts, in the model's dtype."""
    held = HELD.get(experts, {}).get(name)
    if held is None:
        write_rows(experts.get_parameter(name), chosen, rows)
    else:
        held.write(chosen, rows)


def base_tensor(experts: nn.Module, name: str) -> Tensor | QuantisedRows:
    """Return a fused tensor without its graph, as the model computes with it."""
    held = HELD.get(experts, {}).get(name)
    return experts.get_parameter(name).detach() if held is None else held


class _QuantisedLinear(torch.autograd.Function):
    """A grouped multiplication that keeps integers, not weights, for its backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rows: QuantisedRows, ends: Tensor, is_transposed: bool) -> Tensor:
        ctx.rows, ctx.ends, ctx.is_transposed = rows, ends, is_transposed
        output: Tensor = _grouped_linear(inputs, rows.weights(), ends, is_transposed=is_transposed)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weights = ctx.rows.weights()
        inputs = _grouped_linear(
            gradient.contiguous(), weights, ctx.ends, is_transposed=not ctx.is_transposed
        )
        return inputs, None, None, None


def quantised(weights: Tensor, *, bits: Bits, is_transposed: bool) -> tuple[Tensor, Tensor]:
    """Return the integers and scales of `QuantisedRows`; an expert at a time, to need little.

    Args:
        weights: (k,O,I) floating, or (k,I,O) where `is_transposed`.
        bits: Of one weight.
        is_transposed: The layout.

    Raises:
        ModelError: Four bits and an odd number of inputs.
    """
    rows = weights.transpose(-2, -1) if is_transposed else weights
    num_inputs = rows.shape[-1]
    if bits == 4 and num_inputs % 2:
        raise ModelError(
            f"Experts of {num_inputs} inputs can't be held in 4 bits, two to a byte; "
            "set align.base_bits to 8."
        )
    block = num_inputs if bits == 8 else math.gcd(num_inputs, BLOCK)
    values, scales = zip(*(_rounded(row, bits=bits, block=block) for row in rows), strict=True)
    return torch.stack(values), torch.stack(scales)


def _rounded(weight: Tensor, *, bits: Bits, block: int) -> tuple[Tensor, Tensor]:
    """Return the values and scales (O,B) of one expert, (O,I)."""
    blocks = weight.reshape(len(weight), -1, block)
    # Never 0, so that a block of zeros divides. Where the working type rounds a scale down, the largest
    # weight lies beyond the last integer and is cut to it.
    scales = (blocks.abs().amax(dim=-1, keepdim=True) / _LARGEST[bits]).clamp_min(
        torch.finfo(weight.dtype).tiny
    )
    exact = blocks.float() / scales.float()
    integers = exact.round_().clamp_(-_LARGEST[bits], _LARGEST[bits]).to(torch.int8).flatten(-2)
    return (integers if bits == 8 else _packed(integers)), scales.squeeze(-1)


def _packed(integers: Tensor) -> Tensor:
    shifted = (integers + 8).to(torch.uint8)
    return shifted[..., ::2] | (shifted[..., 1::2] << 4)


def _unpacked(values: Tensor) -> Tensor:
    return torch.stack((values & 15, values >> 4), dim=-1).flatten(-2).to(torch.int8) - 8

"""Tensors of experts as the model computes with them: as they are, or as 8-bit integers and scales.

Shape letters: P token-expert pairs, k experts, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.integrations.moe import _grouped_linear

from rasa_moe.moe.sharding import write_rows

_LARGEST = 127


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """Hold one fused tensor of experts.

    Attributes:
        values: (k,O,I) int8, or (k,I,O) where the model stores it so.
        scales: (k,O,1) or (k,1,O), in the working type; a weight is its value times its scale.
        original: The tensor itself, on the CPU.
    """

    values: Tensor
    scales: Tensor
    original: Tensor

    def weights(self) -> Tensor:
        """Return the tensor in the working type, as near as its integers come."""
        return self.values * self.scales

    def linear(self, inputs: Tensor, ends: Tensor, *, is_transposed: bool) -> Tensor:
        """Multiply pairs (P,I), sorted by expert and ending at `ends` (k,) int32; return (P,O)."""
        output: Tensor = _Int8Linear.apply(inputs, self, ends, is_transposed)  # type: ignore[no-untyped-call]
        return output

    def write(self, rows: Sequence[int], values: Tensor) -> None:
        """Write some rows, both as they are and as integers."""
        write_rows(self.original, list(rows), values)
        at = torch.tensor(rows)
        is_transposed = self.scales.shape[1] == 1
        integers, scales = quantised(self.original[at].to(self.values.device), is_transposed)
        self.values[at.to(self.values.device)] = integers
        self.scales[at.to(self.scales.device)] = scales


# By experts module, for the implementation that transformers calls is one global function.
HELD: WeakKeyDictionary[nn.Module, dict[str, Int8Rows]] = WeakKeyDictionary()


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


def base_tensor(experts: nn.Module, name: str) -> Tensor | Int8Rows:
    """Return a fused tensor without its graph, as the model computes with it."""
    held = HELD.get(experts, {}).get(name)
    return experts.get_parameter(name).detach() if held is None else held


class _Int8Linear(torch.autograd.Function):
    """A grouped multiplication that keeps integers, not weights, for its backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rows: Int8Rows, ends: Tensor, is_transposed: bool) -> Tensor:
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


def quantised(weights: Tensor, is_transposed: bool) -> tuple[Tensor, Tensor]:
    """Return (k,O,I) int8 and (k,O,1) scales, or (k,I,O) and (k,1,O); an expert at a time, to need little."""
    values = torch.empty_like(weights, dtype=torch.int8)
    largest = weights.abs().amax(dim=-2 if is_transposed else -1, keepdim=True)
    # Never 0, so that a channel of zeros divides. Where the working type rounds a scale down, the largest
    # weight lies beyond the last integer and is cut to it.
    scales = (largest / _LARGEST).clamp_min(torch.finfo(weights.dtype).tiny)
    for row, weight in enumerate(weights):
        exact = weight.float() / scales[row].float()
        values[row] = exact.round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return values, scales

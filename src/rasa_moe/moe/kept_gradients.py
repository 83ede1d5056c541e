"""Trained rows on a CPU, whose gradients are added up in memory that stays.

A gradient of a layer's chosen rows is large enough that the C library gives its memory back when it is freed,
and the kernel clears the same pages anew in every step (docs/performance.md has what that costs). So it
is added, expert by expert, into a tensor that is made once. The same is known as fusing the accumulation of
gradients. A GPU's allocator keeps what is freed, so nothing of this is done there.

Shape letters: P token-expert pairs, k experts, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import _grouped_linear

from rasa_moe.moe.sharding import is_sharded


class KeptGradient:
    """Hold the memory of one parameter's gradient.

    After `zero_grad`, the next backward pass writes into the same memory: copy a gradient to keep it.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._memory: Tensor | None = None

    def tensor(self) -> tuple[Tensor, bool]:
        """Return the parameter's gradient, and whether it is to be written: it may hold anything then."""
        if self._parameter.grad is not None:
            return self._parameter.grad, False
        if self._memory is None:
            self._memory = torch.empty_like(self._parameter)
        self._parameter.grad = self._memory
        return self._memory, True


def can_keep(parameter: nn.Parameter) -> bool:
    """Tell whether a parameter's gradient can be added up here: whole, and on a CPU."""
    return parameter.device.type == "cpu" and not is_sharded(parameter)


@dataclass(frozen=True, eq=False)
class TrainedRows:
    """Hold a tensor of chosen experts as a pass computes with it.

    Attributes:
        parameter: (k,O,I) or (k,I,O) fp32.
        weights: The same in the working type, without its graph.
        gradient: Where the parameter's gradient is added up.
    """

    parameter: nn.Parameter
    weights: Tensor
    gradient: KeptGradient

    def linear(self, inputs: Tensor, ends: Tensor, *, is_transposed: bool) -> Tensor:
        """Multiply pairs (P,I), sorted by expert and ending at `ends` (k,) int32; return (P,O)."""
        output: Tensor = _Linear.apply(inputs, self.parameter, self, ends, is_transposed)  # type: ignore[no-untyped-call]
        return output


class _Linear(torch.autograd.Function):
    """A grouped multiplication that adds to the gradient of its weights by itself."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, parameter: Tensor, rows: TrainedRows, ends: Tensor, is_transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(inputs, ends)
        ctx.rows, ctx.is_transposed = rows, is_transposed
        output: Tensor = _grouped_linear(inputs, rows.weights, ends, is_transposed=is_transposed)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        inputs, ends = ctx.saved_tensors
        # Not where someone asks for the gradient of something else alone, by `torch.autograd.grad`.
        if torch._C._will_engine_execute_node(ctx.next_functions[1][0]):
            total, is_new = ctx.rows.gradient.tensor()
            _add(total, inputs, gradient, ends, is_transposed=ctx.is_transposed, is_new=is_new)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        of_inputs = _grouped_linear(gradient, ctx.rows.weights, ends, is_transposed=not ctx.is_transposed)
        return of_inputs, None, None, None, None


def _add(
    total: Tensor, inputs: Tensor, gradient: Tensor, ends: Tensor, *, is_transposed: bool, is_new: bool
) -> None:
    """Add the gradient of the weights, (k,O,I) or (k,I,O), to `total`; one that is new is written instead."""
    start = 0
    for rows, end in zip(total, ends.tolist(), strict=True):
        of_inputs, of_outputs = inputs[start:end], gradient[start:end]
        left, right = (of_inputs, of_outputs) if is_transposed else (of_outputs, of_inputs)
        if end == start:
            if is_new:
                rows.zero_()
        elif rows.dtype == left.dtype:
            # With a beta of 0 what stands there is not read.
            rows.addmm_(left.T, right, beta=0 if is_new else 1)
        elif is_new:
            rows.copy_(left.T @ right)
        else:
            rows += left.T @ right
        start = end

"""The floor of the repair step in seconds: what no way of training chosen rows can leave out, beside ours.

That is the forward, the gradient of activations down to the lowest trained layer's inner activations, and the
gradients of the chosen rows alone. Here each is one grouped multiplication with the frozen weights, without a
slice, an optimiser or a copy of anything.

Shape letters: T tokens, K top-k, P = T*K token-expert pairs, D width, k_sel chosen experts, G experts.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm
from transformers.integrations.moe import ExpertsInterface

from rasa_moe.bench.contenders import Task, chosen_slices, learned_half
from rasa_moe.bench.figures import interleaved
from rasa_moe.bench.models import olmoe, token_ids
from rasa_moe.moe import discover

_IMPLEMENTATION = "rasa_moe_floor"
_TENSORS = ("gate_up_proj", "down_proj")
# Experts module -> what takes the gradients of its first k_sel experts.
_ROWS: WeakKeyDictionary[nn.Module, tuple[nn.Parameter, ...]] = WeakKeyDictionary()


class _Linear(torch.autograd.Function):
    """Send pairs, sorted by expert, through frozen weights; only the first experts get a gradient."""

    @staticmethod
    def forward(context: Any, inputs_PD: Tensor, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        context.save_for_backward(inputs_PD, weight, ends)
        context.num_chosen = len(rows)
        return grouped_mm(inputs_PD, weight.transpose(-2, -1), offs=ends)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        (gradient,), (inputs_PD, weight, ends) = gradients, context.saved_tensors
        ends_chosen = ends[: context.num_chosen]
        num_pairs = int(ends_chosen[-1])
        of_rows = grouped_mm(gradient[:num_pairs].transpose(0, 1), inputs_PD[:num_pairs], offs=ends_chosen)
        needed = context.needs_input_grad[0]
        return grouped_mm(gradient, weight, offs=ends) if needed else None, of_rows, None, None


def _floor_forward(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Run the experts as transformers' `grouped_mm` does; (T,D), (T,K), (T,K) -> (T,D)."""
    num_tokens, top_k = ids.shape
    ids_P, order_P = torch.sort(ids.reshape(-1), stable=True)
    ends = torch.bincount(ids_P, minlength=experts.num_experts).cumsum(0).to(torch.int32)
    up_rows, down_rows = _ROWS[experts]
    inner = _Linear.apply(hidden[order_P // top_k], up_rows, experts.gate_up_proj, ends)  # type: ignore[no-untyped-call]
    output = _Linear.apply(experts._apply_gate(inner), down_rows, experts.down_proj, ends)  # type: ignore[no-untyped-call]
    weighted_PD = output * weights.reshape(-1)[order_P].unsqueeze(-1)
    whole_PD = torch.empty_like(weighted_PD).index_copy(0, order_P, weighted_PD)
    return whole_PD.view(num_tokens, top_k, -1).sum(dim=1).to(hidden.dtype)


ExpertsInterface.register(_IMPLEMENTATION, _floor_forward)


def beside_floor(task: Task, *, repeats: int, dtype: torch.dtype) -> dict[str, list[float]]:
    """Time forward and backward of slices and of the floor in turn, on one model.

    Returns:
        "slices" and "floor" -> seconds of each round.
    """
    model = olmoe(task.dimensions, dtype=dtype)
    ids = token_ids(task.dimensions, rows=task.rows, length=task.length)
    slices = chosen_slices(task, model)

    def ours() -> None:
        with slices:
            backward(slices.parameters())

    def floor() -> None:
        model.set_experts_implementation(_IMPLEMENTATION)
        backward(rows)

    def backward(parameters: list[nn.Parameter]) -> None:
        learned_half(model, ids).backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None

    rows = floor_rows(model, len(task.chosen))
    return interleaved({"slices": ours, "floor": floor}, repeats=repeats)


def floor_rows(model: Any, num_chosen: int) -> list[nn.Parameter]:
    """Freeze a model and return what takes the gradients of the first experts of every layer."""
    model.requires_grad_(False)
    for layer in discover(model).layers:
        _ROWS[layer.experts] = tuple(
            nn.Parameter(layer.experts.get_parameter(name)[:num_chosen].detach()) for name in _TENSORS
        )
    return [row for layer in discover(model).layers for row in _ROWS[layer.experts]]

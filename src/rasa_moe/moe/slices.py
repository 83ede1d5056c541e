"""Train chosen experts of fused tensors, and nothing else, as slices that stand outside the model.

A masked gradient is not a frozen weight: AdamW's weight decay and momentum still move it. So the chosen rows
are copied into parameters of their own; the fused tensors take part in the forward only, for all other
experts.

Shape letters: T tokens, K top-k, P = T*K token-expert pairs (P_sel of chosen experts, P_rest of the others),
D width, k_sel chosen experts of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface, _grouped_linear, grouped_mm_experts_forward

from rasa_moe.errors import ModelError
from rasa_moe.moe.layers import ExpertId, MoeMap, expert_tensor_names
from rasa_moe.moe.sharding import (
    is_gathered,
    is_sharded,
    owned_experts,
    stored_like,
    usable,
    whole,
    write_rows,
)

_IMPLEMENTATION = "rasa_moe_slices"


class _LayerSlices:
    """The chosen rows of one layer: fp32 parameters and sort keys."""

    def __init__(self, experts: nn.Module, chosen: list[int], num_experts: int) -> None:
        tensors = {name: experts.get_parameter(name) for name in expert_tensor_names(experts)}
        down = tensors["down_proj"]
        device = down.device
        self.chosen = torch.tensor(chosen, device=device)
        # Where experts are sharded, each process keeps, trains and steps its share of the chosen rows.
        self.is_gathered = is_gathered(down)
        self.rows = {
            name: nn.Parameter(stored_like(whole(tensor)[self.chosen].to(torch.float32), tensor))
            for name, tensor in tensors.items()
        }
        self.num_chosen = len(chosen)
        # Sort key: chosen experts 0..k_sel-1, then every expert of the base at k_sel + its own number. With
        # expert parallelism a process numbers its own experts only, and tokens come to it.
        first, num_owned = owned_experts(experts, num_experts)
        self.key_of_expert = torch.arange(num_owned, device=device) + self.num_chosen
        for key, expert in enumerate(chosen):
            if first <= expert < first + num_owned:
                self.key_of_expert[expert - first] = key
        self.keys = torch.arange(num_owned + self.num_chosen, device=device)


# Slices in use, by experts module. The implementation that transformers calls is one global function, so it
# has to find the slices from the module it is called for.
_OPEN: WeakKeyDictionary[nn.Module, _LayerSlices] = WeakKeyDictionary()


def _slices_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Run fused experts with the chosen rows taken from their slices.

    Same sums in the same order as `grouped_mm`, hence the same bits while slices equal the base.

    Args:
        self: The fused experts module.
        hidden_states: (T,D).
        top_k_index: (T,K) int64.
        top_k_weights: (T,K).

    Returns:
        (T,D), dtype of `hidden_states`.
    """
    slices = _OPEN.get(self)
    if slices is None:
        output: Tensor = grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
        return output
    num_tokens, top_k = top_k_index.shape
    keys_P, order_P = torch.sort(slices.key_of_expert[top_k_index.reshape(-1)], stable=True)
    ends = torch.searchsorted(keys_P, slices.keys, right=True)
    num_chosen_pairs = int(ends[slices.num_chosen - 1])
    num_rest_pairs = keys_P.numel() - num_chosen_pairs
    hidden_chosen, hidden_rest = torch.split(
        hidden_states[order_P // top_k], [num_chosen_pairs, num_rest_pairs]
    )
    parts: list[Tensor] = []
    # Shares of rows are gathered by all processes together, whether or not this one has tokens for them.
    if num_chosen_pairs or slices.is_gathered:
        trained = {name: usable(row).to(getattr(self, name).dtype) for name, row in slices.rows.items()}
        rows_P = keys_P[:num_chosen_pairs]
        parts.append(
            _run_experts(self, hidden_chosen, trained, rows_P=rows_P, ends=ends[: slices.num_chosen])
            if num_chosen_pairs
            else hidden_chosen + torch.stack([rows.sum() for rows in trained.values()]).sum()
        )
    if num_rest_pairs:
        frozen = {name: getattr(self, name).detach() for name in slices.rows}
        rows_P = keys_P[num_chosen_pairs:] - slices.num_chosen
        ends_rest = ends[slices.num_chosen :] - num_chosen_pairs
        parts.append(_run_experts(self, hidden_rest, frozen, rows_P=rows_P, ends=ends_rest))
    output_PD = torch.cat(parts) * top_k_weights.reshape(-1)[order_P].unsqueeze(-1)
    inverse_P = torch.empty_like(order_P)
    inverse_P[order_P] = torch.arange(order_P.numel(), device=order_P.device)
    return output_PD[inverse_P].view(num_tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


def _run_experts(
    experts: Any, hidden_PD: Tensor, tensors: dict[str, Tensor], *, rows_P: Tensor, ends: Tensor
) -> Tensor:
    """Send pairs, sorted by row of `tensors`, through their experts.

    Args:
        experts: The fused module, for its activation and layout.
        hidden_PD: (P,D).
        tensors: Expert tensors by name, (k,...).
        rows_P: (P,) int64, the row of `tensors` each pair uses, ascending.
        ends: (k,) int64, where each row's pairs end.

    Returns:
        (P,D), not yet weighted.
    """
    ends = ends.to(torch.int32)
    transposed = bool(experts.is_transposed)

    def linear(inputs: Tensor, name: str) -> Tensor:
        bias = tensors[f"{name}_bias"][rows_P] if experts.has_bias else None
        result: Tensor = _grouped_linear(inputs, tensors[name], ends, bias=bias, is_transposed=transposed)
        return result

    if experts.has_gate:
        inner = experts._apply_gate(linear(hidden_PD, "gate_up_proj"))
    else:
        inner = experts.act_fn(linear(hidden_PD, "up_proj"))
    output_PD = linear(inner, "down_proj")
    normed_PD: Tensor = experts.post_expert_norm(output_PD) if experts.has_post_expert_norm else output_PD
    return normed_PD


ExpertsInterface.register(_IMPLEMENTATION, _slices_forward)


class ExpertSlices:
    """Hold chosen experts as trainable fp32 rows; a context manager within which the model uses them.

    While open, no parameter of the model wants a gradient, and forwards take the chosen experts from the
    slices. On exit the model is as it was: call `merge` (inside or after) to keep what was learnt. The same
    object may be opened again, and then goes on from its fp32 rows, which a model in bf16 could not hold.
    Keep it open through `backward()`.

    Args:
        moe: The model's map.
        experts: The experts to train; each once.

    Raises:
        ModelError: No expert is given, or an id is unknown or given twice.
    """

    def __init__(self, moe: MoeMap, experts: Sequence[ExpertId]) -> None:
        if not experts:
            raise ModelError(
                "No experts were chosen, so there is nothing to train; raise the budget or the share."
            )
        self.experts = tuple(sorted(experts))
        self._moe = moe
        self._layers = [
            (moe.layers[row], chosen) for row, chosen in sorted(moe.by_layer(self.experts).items())
        ]
        self._slices = [
            _LayerSlices(layer.experts, chosen, layer.num_experts) for layer, chosen in self._layers
        ]
        self._required_grad: dict[str, bool] = {}
        self._implementation: dict[str, str | None] = {}

    def __enter__(self) -> Self:
        if any(layer.experts in _OPEN for layer in self._moe.layers):
            raise ModelError(
                "Expert slices of this model are open already; close them before opening others."
            )
        self._required_grad = freeze(self._moe.model)
        self._implementation = self._moe.model.get_experts_implementation()
        self._moe.model.set_experts_implementation(_IMPLEMENTATION)
        for (layer, _), slices in zip(self._layers, self._slices, strict=True):
            _OPEN[layer.experts] = slices
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for layer, _ in self._layers:
            del _OPEN[layer.experts]
        self._moe.model.set_experts_implementation(self._implementation)
        unfreeze(self._moe.model, self._required_grad)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return (name, (k_sel,...) fp32) pairs, as "model.layers.3.mlp.experts.down_proj[selected]"."""
        return [
            (f"{layer.experts_name}.{name}[selected]", rows)
            for (layer, _), slices in zip(self._layers, self._slices, strict=True)
            for name, rows in slices.rows.items()
        ]

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable rows, in the order of `named_parameters`."""
        return [rows for _, rows in self.named_parameters()]

    @property
    def num_parameters(self) -> int:
        """Number of trainable values."""
        return sum(rows.numel() for rows in self.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the rows as plain fp32 tensors on the CPU."""
        return {
            name: whole(rows).to("cpu", copy=not is_sharded(rows)) for name, rows in self.named_parameters()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over rows saved by `state_dict`.

        Raises:
            ModelError: The state belongs to other experts or another model.
        """
        load_parameters(dict(self.named_parameters()), state, what="expert slices")

    def merge(self) -> None:
        """Write the trained rows into the model, in its dtype; every other value keeps its bits."""
        for (layer, chosen), slices in zip(self._layers, self._slices, strict=True):
            for name, rows in slices.rows.items():
                write_rows(layer.experts.get_parameter(name), chosen, whole(rows))


def freeze(model: nn.Module) -> dict[str, bool]:
    """Stop every parameter of a model from wanting a gradient and return what each wanted before."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    return wanted


def unfreeze(model: nn.Module, wanted: dict[str, bool]) -> None:
    """Give every parameter back what `freeze` returned."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[name])


def load_parameters(parameters: dict[str, nn.Parameter], state: dict[str, Tensor], *, what: str) -> None:
    """Copy a saved state into parameters of the same names and shapes.

    Raises:
        ModelError: Names or shapes differ.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != given:
        differing = sorted(
            name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)
        )
        raise ModelError(
            f"The saved state does not fit these {what}: '{differing[0]}' has shape "
            f"{given.get(differing[0])}, expected {shapes.get(differing[0])}."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored_like(state[name], parameter))

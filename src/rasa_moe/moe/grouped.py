"""The forward of fused experts of slices and of experts of few bits: pairs sorted by expert, run in groups.

Same sums in the same order as transformers' `grouped_mm`, hence the same bits where weights are the same.

Shape letters: T tokens, K top-k, P = T*K token-expert pairs (P_sel of chosen experts, P_rest of the others),
D width, k_sel chosen experts of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface, _grouped_linear, grouped_mm_experts_forward

from rasa_moe.moe.kept_gradients import KeptGradient, TrainedRows, can_keep
from rasa_moe.moe.layers import expert_tensor_names
from rasa_moe.moe.low_rank import AdaptedRows, LowRankRows
from rasa_moe.moe.quantised import HELD, QuantisedRows, base_tensor, expert_rows
from rasa_moe.moe.sharding import is_gathered, owned_experts, stored_like, usable, whole

_IMPLEMENTATION = "rasa_moe_grouped"
_Weights = Tensor | QuantisedRows | TrainedRows | AdaptedRows


class LayerSlices:
    """The chosen rows of one layer: fp32 parameters and sort keys.

    Args:
        experts: The layer's fused experts.
        chosen: Their numbers, ascending.
        num_experts: Of the layer.
        rank: Of what is added to every matrix; None trains whole rows. Biases are trained whole.
        generator: Draws where changes of low rank begin.
    """

    def __init__(
        self,
        experts: Any,
        chosen: list[int],
        num_experts: int,
        *,
        rank: int | None,
        generator: torch.Generator,
    ) -> None:
        down = experts.get_parameter("down_proj")
        device = down.device
        self.chosen = torch.tensor(chosen, device=device)
        # Where experts are sharded, each process keeps, trains and steps its share of the chosen rows.
        self.is_gathered = is_gathered(down)
        names = expert_tensor_names(experts)
        self._low_rank = (
            {}
            if rank is None
            else {
                name: LowRankRows(
                    expert_rows(experts, name),
                    chosen,
                    rank=rank,
                    is_transposed=bool(experts.is_transposed),
                    generator=generator,
                    device=device,
                )
                for name in names
                if not name.endswith("_bias")
            }
        )
        self._rows = {
            name: nn.Parameter(_fp32_rows(expert_rows(experts, name), chosen, device))
            for name in names
            if name not in self._low_rank
        }
        self.num_chosen = len(chosen)
        # Sort key: chosen experts 0..k_sel-1, then every expert of the base at k_sel + its own number. With
        # expert parallelism a process numbers its own experts only, and tokens come to it.
        first, num_owned = owned_experts(experts, num_experts)
        self.key_of_expert = torch.arange(num_owned, device=device) + self.num_chosen
        for key, expert in enumerate(chosen):
            if first <= expert < first + num_owned:
                self.key_of_expert[expert - first] = key
        self.num_keys = num_owned + self.num_chosen
        # Gradients of biases are small and pass through an index.
        self._gradients = {
            name: KeptGradient(rows)
            for name, rows in self._rows.items()
            if can_keep(rows) and not name.endswith("_bias")
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what the optimiser steps, fp32: "down_proj[selected]" is (k_sel,...)."""
        found = {f"{name}[selected]": rows for name, rows in self._rows.items()}
        for name, rows in self._low_rank.items():
            found |= {f"{name}[selected].{part}": thin for part, thin in rows.parameters().items()}
        return found

    def compared(self, before: Mapping[str, Tensor], *, prefix: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of each tensor, then and now, on the CPU; `before` has `parameters`, prefixed."""
        for name, rows in self._rows.items():
            yield before[f"{prefix}{name}[selected]"], whole(rows).cpu()
        for name, low_rank in self._low_rank.items():
            then = {part: before[f"{prefix}{name}[selected].{part}"] for part in low_rank.parameters()}
            yield low_rank.values(then).cpu(), low_rank.values().cpu()

    def values(self) -> dict[str, Tensor]:
        """Return the rows as trained, (k_sel,...) fp32, as the model stores them."""
        return {name: whole(rows) for name, rows in self._rows.items()} | {
            name: rows.values() for name, rows in self._low_rank.items()
        }

    def usable(self, dtype: torch.dtype) -> dict[str, _Weights]:
        """Return the rows in the working type, such that gradient reaches the parameters."""
        adapted: dict[str, _Weights] = {name: rows.usable(dtype) for name, rows in self._low_rank.items()}
        return adapted | {
            name: TrainedRows(rows, rows.detach().to(dtype), self._gradients[name])
            if name in self._gradients and torch.is_grad_enabled()
            else usable(rows).to(dtype)
            for name, rows in self._rows.items()
        }


def _fp32_rows(tensor: Tensor, chosen: list[int], device: torch.device) -> Tensor:
    rows = whole(tensor)[torch.tensor(chosen, device=tensor.device)]
    return stored_like(rows.to(device, torch.float32), tensor)


# Slices in use, by experts module. The implementation that transformers calls is one global function, so it
# has to find the slices from the module it is called for.
OPEN: WeakKeyDictionary[nn.Module, LayerSlices] = WeakKeyDictionary()


def _grouped_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Run fused experts with the chosen rows taken from their slices, the others from the base.

    Args:
        self: The fused experts module.
        hidden_states: (T,D).
        top_k_index: (T,K) int64.
        top_k_weights: (T,K).

    Returns:
        (T,D), dtype of `hidden_states`.
    """
    slices = OPEN.get(self)
    if slices is None and self not in HELD:
        output: Tensor = grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
        return output
    num_tokens, top_k = top_k_index.shape
    keys = top_k_index.reshape(-1) if slices is None else slices.key_of_expert[top_k_index.reshape(-1)]
    keys_P, order_P = torch.sort(keys, stable=True)
    num_keys = self.num_experts if slices is None else slices.num_keys
    ends = torch.searchsorted(keys_P, torch.arange(num_keys, device=keys_P.device), right=True)
    hidden_PD = hidden_states.index_select(0, order_P // top_k)
    weights_P = top_k_weights.reshape(-1).index_select(0, order_P)
    parts: list[Tensor] = []
    num_chosen = 0 if slices is None else slices.num_chosen
    num_chosen_pairs = int(ends[num_chosen - 1]) if num_chosen else 0
    # Cut once: backward then joins the parts, and fills nothing with zeros.
    chosen_PD, rest_PD = hidden_PD.split_with_sizes([num_chosen_pairs, keys_P.numel() - num_chosen_pairs])
    # Shares of rows are gathered by all processes together, whether or not this one has tokens for them.
    if slices is not None and (num_chosen_pairs or slices.is_gathered):
        trained, rows_P = slices.usable(hidden_states.dtype), keys_P[:num_chosen_pairs]
        parts.append(
            _run_experts(self, chosen_PD, trained, rows_P=rows_P, ends=ends[:num_chosen])
            if num_chosen_pairs
            else chosen_PD + _nothing_of(trained)
        )
    if num_chosen_pairs < keys_P.numel():
        frozen = {name: base_tensor(self, name) for name in expert_tensor_names(self)}
        rows_P = keys_P[num_chosen_pairs:] - num_chosen
        ends_rest = ends[num_chosen:] - num_chosen_pairs
        parts.append(_run_experts(self, rest_PD, frozen, rows_P=rows_P, ends=ends_rest))
    output_PD = torch.cat(parts) * weights_P.unsqueeze(-1)
    inverse_P = torch.empty_like(order_P)
    inverse_P[order_P] = torch.arange(order_P.numel(), device=order_P.device)
    return output_PD.index_select(0, inverse_P).view(num_tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


def _nothing_of(gathered: Mapping[str, _Weights]) -> Tensor:
    """Return a number in whose backward pass every process takes part; it is added to no pair at all."""
    # Gathered once already: another gathering would leave the other processes waiting.
    sums = [
        rows.down.sum() + rows.up.sum() if isinstance(rows, AdaptedRows) else cast(Tensor, rows).sum()
        for rows in gathered.values()
    ]
    return torch.stack(sums).sum()


def _run_experts(
    experts: Any,
    hidden_PD: Tensor,
    tensors: Mapping[str, _Weights],
    *,
    rows_P: Tensor,
    ends: Tensor,
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
        bias = cast(Tensor, tensors[f"{name}_bias"])[rows_P] if experts.has_bias else None
        weights = tensors[name]
        if isinstance(weights, Tensor):
            output: Tensor = _grouped_linear(inputs, weights, ends, bias=bias, is_transposed=transposed)
            return output
        output = weights.linear(inputs, ends, is_transposed=transposed)
        return output if bias is None else output + bias

    if experts.has_gate:
        inner = experts._apply_gate(linear(hidden_PD, "gate_up_proj"))
    else:
        inner = experts.act_fn(linear(hidden_PD, "up_proj"))
    output_PD = linear(inner, "down_proj")
    normed_PD: Tensor = experts.post_expert_norm(output_PD) if experts.has_post_expert_norm else output_PD
    return normed_PD


ExpertsInterface.register(_IMPLEMENTATION, _grouped_forward)


@contextmanager
def grouped_experts(model: Any) -> Iterator[None]:
    """Let a model run its experts by the forward of this file; afterwards by the one it had."""
    before = model.get_experts_implementation()
    model.set_experts_implementation(_IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_experts_implementation(before)

"""Train chosen experts of fused tensors, and nothing else, as slices that stand outside the model.

A masked gradient is not a frozen weight: AdamW's weight decay and momentum still move it. So the chosen rows
are copied into parameters of their own; the fused tensors take part in the forward only, for all other
experts.

Shape letters: k_sel chosen experts of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from rasa_moe.errors import ModelError
from rasa_moe.moe.grouped import OPEN, LayerSlices, grouped_experts
from rasa_moe.moe.layers import ExpertId, MoeMap
from rasa_moe.moe.quantised import write_expert_rows
from rasa_moe.moe.sharding import is_sharded, stored_like, whole


class ExpertSlices:
    """Hold chosen experts as trainable fp32 rows; a context manager within which the model uses them.

    While open, no parameter of the model wants a gradient, and forwards take the chosen experts from the
    slices. On exit the model is as it was: call `merge` (inside or after) to keep what was learnt. The same
    object may be opened again, and then goes on from its fp32 rows, which a model in bf16 could not hold.
    Keep it open through `backward()`.

    Args:
        moe: The model's map.
        experts: The experts to train; each once.
        rank: Of what is added to each of their matrices; None trains whole rows.
        seed: Decides where changes of low rank begin.

    Raises:
        ModelError: No expert is given, or an id is unknown or given twice.
    """

    def __init__(
        self, moe: MoeMap, experts: Sequence[ExpertId], *, rank: int | None = None, seed: int = 0
    ) -> None:
        if not experts:
            raise ModelError(
                "No experts were chosen, so there is nothing to train; raise the budget or the share."
            )
        self.experts = tuple(sorted(experts))
        self._moe = moe
        self._layers = [
            (moe.layers[row], chosen) for row, chosen in sorted(moe.by_layer(self.experts).items())
        ]
        generator = torch.Generator().manual_seed(seed)
        self._slices = [
            LayerSlices(layer.experts, chosen, layer.num_experts, rank=rank, generator=generator)
            for layer, chosen in self._layers
        ]
        self._required_grad: dict[str, bool] = {}
        self._in_use = grouped_experts(moe.model)

    def __enter__(self) -> Self:
        if any(layer.experts in OPEN for layer in self._moe.layers):
            raise ModelError(
                "Expert slices of this model are open already; close them before opening others."
            )
        self._required_grad = freeze(self._moe.model)
        self._in_use = grouped_experts(self._moe.model)
        self._in_use.__enter__()
        for (layer, _), slices in zip(self._layers, self._slices, strict=True):
            OPEN[layer.experts] = slices
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for layer, _ in self._layers:
            del OPEN[layer.experts]
        self._in_use.__exit__(None, None, None)
        unfreeze(self._moe.model, self._required_grad)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return (name, (k_sel,...) fp32) pairs, as "model.layers.3.mlp.experts.down_proj[selected]"."""
        return [
            (f"{layer.experts_name}.{name}", rows)
            for (layer, _), slices in zip(self._layers, self._slices, strict=True)
            for name, rows in slices.parameters().items()
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

    def change_since(self, state: dict[str, Tensor]) -> float:
        """Return how far the rows moved since `state_dict`, relative to their norm then."""
        return relative_change(
            pair
            for (layer, _), slices in zip(self._layers, self._slices, strict=True)
            for pair in slices.compared(state, prefix=f"{layer.experts_name}.")
        )

    def merge(self) -> None:
        """Write the trained rows into the model, in its dtype; every other value keeps its bits."""
        for (layer, chosen), slices in zip(self._layers, self._slices, strict=True):
            for name, rows in slices.values().items():
                write_expert_rows(layer.experts, name, chosen, rows)


def relative_change(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return ||after - before|| / ||before|| over (before, after) of all tensors together."""
    change = size = 0.0
    for before, after in pairs:
        change += float((after.double() - before.double()).square().sum())
        size += float(before.double().square().sum())
    return math.sqrt(change / size) if size else 0.0


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

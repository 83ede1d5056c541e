"""Train low-rank changes of attention, which carries harm to the last prompt token, beside the experts there.

Experts of one token decide from what attention has brought there; a repair of experts alone cannot make it
bring more. Changes of low rank (LoRA, Hu et al., 2021) are enough, and keep what attention did besides.

Shape letters: R rank, I inputs and O outputs of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from rasa_moe.errors import ModelError
from rasa_moe.moe.layers import MoeMap
from rasa_moe.moe.low_rank import SCALE, first_down
from rasa_moe.moe.sharding import is_gathered, is_sharded, stored_like, usable, whole, write_rows
from rasa_moe.moe.slices import freeze, load_parameters, relative_change, unfreeze

# Ends of class names: of attention, also of linear kinds, which bring context from other tokens as well.
_KINDS = ("Attention", "DeltaNet")


def attention_projections(moe: MoeMap) -> dict[str, nn.Linear]:
    """Return the linear layers of attention in every decoder layer, by full module name, in order of depth.

    Gated delta nets count, since they stand in the place of attention; state-space and convolution mixers do
    not. Indexers of sparse attention choose tokens by a hard choice, which no gradient passes.

    Raises:
        ModelError: The decoder layers have none, as in a model without attention.
    """
    layers, _, _ = moe.layers[0].decoder_name.rpartition(".")
    found = {
        f"{layers}.{inside}.{name}": module
        for inside, block in moe.model.get_submodule(layers).named_modules()
        if type(block).__name__.endswith(_KINDS)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and "indexer" not in f"{inside}.{name}"
    }
    if not found:
        raise ModelError(
            f"No linear layer of attention was found in this '{moe.model_type}' model; set "
            "align.attention_rank to null, and leave lora out of compare."
        )
    return found


def attention_weights(moe: MoeMap) -> list[str]:
    """Return the parameter names of the weights of `attention_projections`."""
    return [f"{name}.weight" for name in attention_projections(moe)]


class LowRankAttention:
    """Hold a low-rank change of every attention projection; a context manager within which it is added.

    While open, no parameter of the model wants a gradient. The changes begin at 0, so the model begins as it
    was. `merge` writes weights with their changes into the model; the same object may be opened again, and
    then goes on from its own values. Keep it open through `backward()`.

    Args:
        moe: The model's map; the model has its base weights.
        rank: R.
        seed: Decides where the changes begin.

    Raises:
        ModelError: No attention was found, or tensor parallelism cuts it.
    """

    def __init__(self, moe: MoeMap, *, rank: int, seed: int = 0) -> None:
        self._model = moe.model
        self._projections = attention_projections(moe)
        weights = [projection.weight for projection in self._projections.values()]
        if any(is_sharded(weight) and not is_gathered(weight) for weight in weights):
            raise ModelError(
                "A change of attention needs whole projections, which tensor parallelism cuts; set "
                "align.attention_rank to null."
            )
        # Shared out as experts are, since one optimiser steps both.
        example = moe.layers[0].experts.get_parameter("down_proj")
        generator = torch.Generator().manual_seed(seed)
        self._base: dict[str, Tensor] = {}
        self._thin: dict[str, nn.Parameter] = {}
        for name, projection in self._projections.items():
            weight = projection.weight
            outputs, inputs = weight.shape
            down = first_down(rank, inputs, generator=generator)
            self._base[name] = whole(weight).cpu().clone()
            for part, thin in (("down", down), ("up", torch.zeros(outputs, rank))):
                self._thin[f"{name}.{part}"] = nn.Parameter(stored_like(thin.to(weight.device), example))
        self._handles: list[RemovableHandle] = []
        self._required_grad: dict[str, bool] = {}

    def __enter__(self) -> Self:
        self._required_grad = freeze(self._model)
        for name, projection in self._projections.items():
            # A merge has written the change into the weight, where it would count twice.
            write_rows(projection.weight, None, self._base[name])
            self._handles.append(projection.register_forward_hook(self._adding(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        unfreeze(self._model, self._required_grad)

    def _adding(self, name: str) -> Any:
        down, up = self._thin[f"{name}.down"], self._thin[f"{name}.up"]

        def add(projection: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inner = functional.linear(arguments[0], usable(down).to(output.dtype))
            # Scaled here, the thin matrix costs next to nothing; what it makes is as large as the output.
            return output + functional.linear(inner, SCALE * usable(up).to(output.dtype))

        return add

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser steps, fp32: of each projection (R,I) and (O,R)."""
        return list(self._thin.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the thin matrices on the CPU."""
        return {name: whole(thin).to("cpu", copy=not is_sharded(thin)) for name, thin in self._thin.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over matrices saved by `state_dict`.

        Raises:
            ModelError: The state belongs to another model or rank.
        """
        load_parameters(self._thin, state, what="changes of attention")

    @torch.no_grad()
    def change_since(self, state: dict[str, Tensor]) -> float:
        """Return how far the weights moved since `state_dict`, relative to their norm then."""
        return relative_change(
            (self._changed(name, state), self._changed(name, self._thin)) for name in self._projections
        )

    @torch.no_grad()
    def merge(self) -> None:
        """Write the weights with their changes into the model, in its dtype."""
        for name, projection in self._projections.items():
            write_rows(projection.weight, None, self._changed(name, self._thin))

    def _changed(self, name: str, thin: Mapping[str, Tensor]) -> Tensor:
        """Return the weight of a projection with a change, (O,I) fp32 on the CPU."""
        down, up = (whole(thin[f"{name}.{part}"]).cpu() for part in ("down", "up"))
        return self._base[name].float() + SCALE * up @ down

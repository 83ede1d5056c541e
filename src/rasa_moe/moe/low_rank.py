"""Low-rank changes of chosen experts: their rows stay, and a product of two thin matrices is added to each.

LoRA (Hu et al., 2021), for rows of fused tensors. Fewer values are trained, with their gradients and moments,
than rows have, and a change of low rank forgets less of what an expert did besides.

Shape letters: k chosen experts, R rank, I inputs and O outputs of a linear layer, P token-expert pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.integrations.moe import _grouped_linear

from rasa_moe.errors import ModelError
from rasa_moe.moe.sharding import is_gathered, is_sharded, stored_like, usable, whole

# LoRA's alpha over its rank.
SCALE = 2.0


def first_down(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw matrices (...,R,I) as torch begins a linear layer; those that begin at 0 stand behind them."""
    drawn: Tensor = (torch.rand(*shape, generator=generator) * 2 - 1) * shape[-1] ** -0.5
    return drawn


@dataclass(frozen=True, eq=False)
class AdaptedRows:
    """Hold a tensor of chosen experts as a pass computes with it, in the working type.

    Attributes:
        weights: (k,O,I) or (k,I,O), frozen.
        down: (k,R,I), with its graph.
        up: (k,O,R), with its graph.
    """

    weights: Tensor
    down: Tensor
    up: Tensor

    def linear(self, inputs: Tensor, ends: Tensor, *, is_transposed: bool) -> Tensor:
        """Multiply pairs (P,I), sorted by expert and ending at `ends` (k,) int32; return (P,O)."""
        frozen: Tensor = _grouped_linear(inputs, self.weights, ends, is_transposed=is_transposed)
        inner = _grouped_linear(inputs, self.down, ends)
        added: Tensor = _grouped_linear(inner, SCALE * self.up, ends)
        return frozen + added


class LowRankRows:
    """What is trained of one fused tensor's chosen experts, fp32, beside their frozen rows.

    The product begins at 0, so the model begins as it was.

    Args:
        tensor: Of all experts, as the model stores it.
        chosen: Rows of it.
        rank: R.
        is_transposed: Whether the model stores (k,I,O) and not (k,O,I).
        generator: Draws the matrices that begin above 0.
        device: Where the model computes.

    Raises:
        ModelError: Every process holds a piece of every row.
    """

    def __init__(
        self,
        tensor: Tensor,
        chosen: list[int],
        *,
        rank: int,
        is_transposed: bool,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        if is_sharded(tensor) and not is_gathered(tensor):
            raise ModelError(
                "A change of low rank needs whole rows, which tensor parallelism cuts; set align.expert_rank "
                "to null."
            )
        rows = whole(tensor)[torch.tensor(chosen, device=tensor.device)].to(device)
        inputs, outputs = rows.shape[1:] if is_transposed else rows.shape[:0:-1]
        down = first_down(len(chosen), rank, inputs, generator=generator)
        self._rows = nn.Parameter(stored_like(rows, tensor), requires_grad=False)
        self._down = nn.Parameter(stored_like(down.to(device), tensor))
        self._up = nn.Parameter(stored_like(torch.zeros(len(chosen), outputs, rank, device=device), tensor))
        self._is_transposed = is_transposed

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return what the optimiser steps: "down" (k,R,I) and "up" (k,O,R), fp32."""
        return {"down": self._down, "up": self._up}

    def usable(self, dtype: torch.dtype) -> AdaptedRows:
        """Return the rows in the working type, such that gradient reaches the parameters."""
        weights, down, up = (usable(tensor).to(dtype) for tensor in (self._rows, self._down, self._up))
        return AdaptedRows(weights, down, up)

    def values(self, learnt: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return rows with what was learnt, or with other `parameters`, fp32, as the model stores them."""
        now = {"up": self._up, "down": self._down} if learnt is None else learnt
        up, down = (whole(now[part]).to(self._rows.device) for part in ("up", "down"))
        added = SCALE * up @ down
        return whole(self._rows).float() + (added.transpose(1, 2) if self._is_transposed else added)

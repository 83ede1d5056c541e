"""Split the difference between a base and a tuned model into components, and mix the two by component."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rasa_moe.moe import ExpertId, MoeMap, Piece, Swap, differing, router_tensor_names

SELECTED = "selected experts"
OTHER = "other experts"
ROUTERS = "routers"
REST = "everything else"
EXPERTS = "all experts"
"""The selected and the other experts where a game does not tell them apart."""
ROUTED = "routed experts"
"""Not weights but what routing made of them: the experts each token is sent to, and with what weights."""

WEIGHTS = (SELECTED, OTHER, ROUTERS, REST)


@dataclass(frozen=True, eq=False)
class Difference:
    """Hold all in which two models of one architecture differ, cut into components.

    The model is one of the two, or a mixture, at a time: beside it only the rows in which they differ are
    held.

    Attributes:
        swaps: Component -> what the model lacks of it, or has lent.
    """

    swaps: Mapping[str, Swap]

    @property
    def components(self) -> tuple[str, ...]:
        """The components in which the models differ, in the order of `WEIGHTS`."""
        return tuple(component for component in WEIGHTS if component in self.swaps)

    def become(self, tuned: Collection[str]) -> None:
        """Make the model the mixture that has these components of the tuned model, and the base's others."""
        for component, swap in self.swaps.items():
            if swap.is_in != (component in tuned):
                swap.exchange()

    @contextmanager
    def mixed(self, tuned: Collection[str]) -> Iterator[None]:
        """Make the model a mixture for a while; afterwards it is the base model."""
        try:
            self.become(tuned)
            yield
        finally:
            self.become(())


def difference(moe: MoeMap, tuned: Iterable[Piece], *, experts: Sequence[ExpertId]) -> Difference:
    """Compare a model, which holds the base weights, with what a tuned one has.

    Args:
        moe: Map of the base model.
        tuned: The tuned model's tensors, or rows of them; all else is taken to be equal.
        experts: The experts that count as selected.
    """
    is_selected = _expert_rows(moe, experts)
    routers = router_tensor_names(moe)
    found: dict[str, list[Piece]] = {}
    for piece in differing(moe.model, tuned):
        for component, part in _parts(piece, is_selected.get(piece.name), is_router=piece.name in routers):
            found.setdefault(component, []).append(part)
    return Difference({component: Swap(moe.model, pieces) for component, pieces in found.items()})


def _expert_rows(moe: MoeMap, experts: Sequence[ExpertId]) -> dict[str, Tensor]:
    """Return, for every fused expert tensor, which of its rows are selected experts, (E,) bool."""
    selected = moe.by_layer(list(experts))
    found = {}
    for row, layer in enumerate(moe.layers):
        is_selected = torch.zeros(layer.num_experts, dtype=torch.bool)
        is_selected[selected.get(row, [])] = True
        for name, _ in layer.experts.named_parameters(layer.experts_name):
            found[name] = is_selected
    return found


def _parts(piece: Piece, is_selected_E: Tensor | None, *, is_router: bool) -> Iterator[tuple[str, Piece]]:
    if is_selected_E is None:
        yield (ROUTERS if is_router else REST), piece
        return
    is_selected = is_selected_E[slice(None) if piece.rows is None else piece.rows]
    for component, mask in ((SELECTED, is_selected), (OTHER, ~is_selected)):
        if bool(mask.all()):
            yield component, piece
        elif bool(mask.any()):
            yield component, piece.some(mask.nonzero().flatten().tolist())

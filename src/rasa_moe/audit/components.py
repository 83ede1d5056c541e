"""Split the difference between a base and a tuned model into components, and mix the two by component."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rasa_moe.moe import ExpertId, MoeMap, router_tensor_names

SELECTED = "selected experts"
OTHER = "other experts"
ROUTERS = "routers"
REST = "everything else"
EXPERTS = "all experts"
"""The selected and the other experts where a game does not tell them apart."""
ROUTED = "routed experts"
"""Not weights but what routing made of them: the experts each token is sent to, and with what weights."""

WEIGHTS = (SELECTED, OTHER, ROUTERS, REST)


@dataclass(frozen=True, eq=False, kw_only=True)
class Difference:
    """Hold every tensor in which two models of one architecture differ, cut into components.

    Attributes:
        base: Tensor name -> the base model's tensor; a copy.
        tuned: The tuned model's tensors of the same names.
        pieces: Tensor name -> component -> rows of the tensor that belong to it, (k,) int64; None stands for
            the whole tensor.
    """

    base: Mapping[str, Tensor]
    tuned: Mapping[str, Tensor]
    pieces: Mapping[str, Mapping[str, Tensor | None]]

    @property
    def components(self) -> tuple[str, ...]:
        """The components in which the models differ, in the order of `WEIGHTS`."""
        found = {component for pieces in self.pieces.values() for component in pieces}
        return tuple(component for component in WEIGHTS if component in found)

    def mixture(self, tuned_components: Collection[str]) -> dict[str, Tensor]:
        """Return the tensors in which a mixture differs from the base model.

        Args:
            tuned_components: Components taken from the tuned model; all others are the base model's.
        """
        mixed = {}
        for name, pieces in self.pieces.items():
            chosen = [rows for component, rows in pieces.items() if component in tuned_components]
            if not chosen:
                continue
            if len(chosen) == len(pieces):
                mixed[name] = self.tuned[name]
                continue
            mixed[name] = self.base[name].clone()
            for rows in chosen:
                assert rows is not None  # a whole tensor belongs to one component only
                mixed[name][rows] = self.tuned[name][rows]
        return mixed


@torch.no_grad()
def difference(moe: MoeMap, tuned: Mapping[str, Tensor], *, experts: Sequence[ExpertId]) -> Difference:
    """Compare a model, which holds the base weights, with tensors of a tuned one.

    Args:
        moe: Map of the base model.
        tuned: Tensor name -> the tuned model's tensor; others are taken to be equal.
        experts: The experts that count as selected.
    """
    own = named_tensors(moe)
    is_expert_tensor = _expert_rows(moe, experts)
    routers = router_tensor_names(moe)
    base, changed, pieces = {}, {}, {}
    for name, tensor in tuned.items():
        mine = own[name]
        value = tensor.to(mine.device, mine.dtype)
        if torch.equal(mine, value):
            continue
        differs = (mine != value).flatten(1).any(dim=1) if name in is_expert_tensor else None
        base[name], changed[name] = mine.detach().clone(), value
        pieces[name] = dict(_pieces(differs, is_expert_tensor.get(name), is_router=name in routers))
    return Difference(base=base, tuned=changed, pieces=pieces)


def named_tensors(moe: MoeMap) -> dict[str, Tensor]:
    """Return all parameters and buffers by name; routers may keep a selection bias as a buffer."""
    return {**dict(moe.model.named_parameters()), **dict(moe.model.named_buffers())}


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


def _pieces(
    differs_E: Tensor | None, is_selected_E: Tensor | None, *, is_router: bool
) -> Iterator[tuple[str, Tensor | None]]:
    if differs_E is None or is_selected_E is None:
        yield (ROUTERS if is_router else REST), None
        return
    is_selected_E = is_selected_E.to(differs_E.device)
    for component, mask in ((SELECTED, is_selected_E), (OTHER, ~is_selected_E)):
        rows = (differs_E & mask).nonzero()[:, 0]
        if len(rows):
            yield component, rows

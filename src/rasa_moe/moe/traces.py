"""Hold what was seen of a model's routing: traces, activation counts and routing distributions.

Shape letters: B sequences, S positions, T real tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rasa_moe.errors import DataError, ModelError
from rasa_moe.moe.calls import narrowed
from rasa_moe.moe.layers import MoeMap
from rasa_moe.moe.scoring import routing_distribution


@dataclass(frozen=True, eq=False)
class RoutedCall:
    """The routing of one forward call, padding included, as replay needs it.

    Attributes:
        mask: (B,S) bool, the real tokens (of the span, if one was given).
        ids: Layer name -> (B*S,K) int64.
        weights: Layer name -> (B*S,K), dtype of the router.
        probabilities: Layer name -> (B*S,E) fp32; empty unless asked for.
    """

    mask: Tensor
    ids: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    probabilities: dict[str, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class RoutingTrace:
    """What `record` saw, call by call.

    Attributes:
        calls: One entry per forward call, in order.
        span: (B,S) bool narrowing the next call's real tokens, or None; may be set anew before every call.
    """

    calls: list[RoutedCall] = field(default_factory=list)
    span: Tensor | None = None

    @property
    def ids(self) -> dict[str, Tensor]:
        """Layer name -> (T,K) int64, real tokens only, by call, then sequence, then position."""
        return self._real("ids")

    @property
    def weights(self) -> dict[str, Tensor]:
        """Layer name -> (T,K), in the order of `ids`."""
        return self._real("weights")

    @property
    def probabilities(self) -> dict[str, Tensor]:
        """Layer name -> (T,E) fp32 routing distribution, in the order of `ids`."""
        return self._real("probabilities")

    @property
    def mask(self) -> Tensor:
        """(B, all positions) bool: the calls side by side, as `generate()` makes them."""
        return torch.cat([call.mask for call in self.calls], dim=1)

    def grid(self, layer_name: str) -> Tensor:
        """Return (B, all positions, K) int64 ids of one layer, calls side by side; valid where `mask` is."""
        return torch.cat([call.ids[layer_name].view(*call.mask.shape, -1) for call in self.calls], dim=1)

    def _real(self, kind: str) -> dict[str, Tensor]:
        names = list(getattr(self.calls[0], kind)) if self.calls else []
        return {
            name: torch.cat([getattr(call, kind)[name][call.mask.flatten()] for call in self.calls])
            for name in names
        }


@dataclass(eq=False)
class ActivationCounts:
    """How often each sequence activated each expert; every forward call appends its sequences.

    Attributes:
        span: (B,S) bool narrowing the next call's real tokens, or None; may be set anew before every call.
    """

    span: Tensor | None = None
    _counts: list[Tensor] = field(default_factory=list)
    _tokens: list[Tensor] = field(default_factory=list)

    @property
    def counts(self) -> Tensor:
        """(B,L,E) int64: tokens of the span that activated the expert."""
        return torch.cat(self._counts)

    @property
    def tokens(self) -> Tensor:
        """(B,) int64: tokens of the span."""
        return torch.cat(self._tokens)

    def rates(self) -> Tensor:
        """Return (B,L,E) fp32: the fraction of each sequence's span tokens that activate each expert.

        Paper: the mean of H_{l,e} over the tokens of one prompt, whose mean over prompts is P(activate_{l,e}
            | X).

        Raises:
            DataError: A sequence has no token in its span.
        """
        if not bool(self.tokens.all()):
            row = int((self.tokens == 0).nonzero()[0])
            raise DataError(
                f"Sequence {row} has no token in its span, so its activation rates are undefined; drop it."
            )
        return self.counts.float() / self.tokens[:, None, None].float()


class RouterWatch:
    """The routing distributions of the latest forward call, with their graph."""

    def __init__(self, moe: MoeMap) -> None:
        self._moe = moe
        self._mask: Tensor | None = None
        self._logits: dict[str, Tensor] = {}

    def mean_probabilities(self, span: Tensor | None = None) -> Tensor:
        """Average the routing distribution over the real tokens of each sequence.

        Deviation: the reference code takes the softmax of the mean logits; the mean of probabilities is the
        distribution the method speaks of.

        Args:
            span: (B,S) bool narrowing the real tokens, or None.

        Returns:
            (B,L,E) fp32, differentiable; each row sums to 1.

        Raises:
            ModelError: No forward call was watched, or the span has another shape.
            DataError: A sequence has no token in the span.
        """
        if self._mask is None or len(self._logits) != self._moe.num_layers:
            raise ModelError(
                "No complete forward call was watched; call the model before asking for its routing."
            )
        mask = narrowed(self._mask, span)
        tokens_B = mask.sum(dim=1)
        if not bool(tokens_B.all()):
            raise DataError("A sequence has no token in its span, so its mean routing is undefined; drop it.")
        weights_BS = mask.float() / tokens_B[:, None]
        means = []
        for layer in self._moe.layers:
            probabilities = routing_distribution(self._logits[layer.name], layer.scoring).view(
                *mask.shape, -1
            )
            means.append(torch.einsum("bs,bse->be", weights_BS, probabilities))
        return torch.stack(means, dim=1)

"""Stage 3: train only the routers, towards routing jailbreaks as their plain requests are routed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rasa_moe.align.batches import TrainingBatch
from rasa_moe.align.losses import routing_divergence
from rasa_moe.config import AlignConfig
from rasa_moe.distributed import current
from rasa_moe.moe import MoeMap, call_for_routing, watch_routers
from rasa_moe.moe.sharding import through_output


class RoutingConsistency:
    """Compute the router loss of a batch against targets taken once, when this object is made.

    Paper: `min_Phi L_router(Phi; Theta)` with the anchors' routing as a stop-gradient target.
    Deviation: the target is the anchors' routing at the beginning of the epoch, not of every step; it is a
        fixed target within the epoch and costs one forward pass instead of one a step.
    Deviation: plain requests and harmless conversations are held to the routing they have at the beginning of
        the epoch, with weight `align.router_retain_weight`; 0 is the paper's form. Without them the routers
        can learn the wrapper instead of the harm, and refuse harmless requests in the same clothes.
    """

    def __init__(
        self, model: Any, moe: MoeMap, batches: Sequence[TrainingBatch], *, config: AlignConfig
    ) -> None:
        self._model = model
        self._moe = moe
        self._config = config
        with torch.no_grad():
            self._targets = [self._routing(batch, ("anchor", *self._kept(batch))) for batch in batches]

    def __call__(self, batch: TrainingBatch, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the divergence for batch number `index`."""
        kept = self._kept(batch)
        target, routing = self._targets[index], self._routing(batch, ("jailbreak", *kept))
        pairs = len(batch.parts["jailbreak"])
        divergence = routing_divergence(target[:pairs], routing[:pairs], kind=self._config.kl)
        if not kept:
            return divergence, {"kl": divergence}
        drift = routing_divergence(target[pairs:], routing[pairs:], kind=self._config.kl)
        return divergence + self._config.router_retain_weight * drift, {"kl": divergence, "kl_retain": drift}

    def _kept(self, batch: TrainingBatch) -> tuple[str, ...]:
        """Name the parts whose routing must stay; they follow the pairs in every target."""
        if self._config.router_retain_weight == 0:
            return ()
        return tuple(name for name in ("anchor", "retain") if name in batch.parts)

    def _routing(self, batch: TrainingBatch, parts: tuple[str, ...]) -> Tensor:
        """Return the mean routing distribution of each chat over the configured span, (B,L,E) fp32."""
        chats = batch.part(*parts)
        own = (world := current()).own_rows
        with watch_routers(self._moe, self._model) as watch:
            output = call_for_routing(
                self._moe,
                self._model,
                input_ids=own(chats.input_ids),
                attention_mask=own(chats.attention_mask),
            )
        routing = watch.mean_probabilities(own(chats.spans[self._config.router_span]))
        routing = through_output(routing, self._model, output)
        return world.whole_rows(routing, total=len(chats.input_ids))

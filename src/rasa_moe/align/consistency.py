"""Stage 3: train only the routers, towards routing jailbreaks as their plain requests are routed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rasa_moe.align.batches import TrainingBatch
from rasa_moe.align.losses import routing_divergence
from rasa_moe.config import AlignConfig
from rasa_moe.data.chats import Batch
from rasa_moe.moe import MoeMap, watch_routers


class RoutingConsistency:
    """Compute the router loss of a batch against targets taken once, when this object is made.

    Paper: `min_Phi L_router(Phi; Theta)` with the anchors' routing as a stop-gradient target.
    Deviation: the target is the anchors' routing at the beginning of the epoch, not of every step; it is a
        fixed target within the epoch and costs one forward pass instead of one a step.
    """

    def __init__(
        self, model: Any, moe: MoeMap, batches: Sequence[TrainingBatch], *, config: AlignConfig
    ) -> None:
        self._model = model
        self._moe = moe
        self._config = config
        with torch.no_grad():
            self._targets = [self._routing(batch.part("anchor")) for batch in batches]

    def __call__(self, batch: TrainingBatch, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the divergence for batch number `index`."""
        routing = self._routing(batch.part("jailbreak"))
        divergence = routing_divergence(self._targets[index], routing, kind=self._config.kl)
        return divergence, {"kl": divergence}

    def _routing(self, chats: Batch) -> Tensor:
        """Return the mean routing distribution of each chat over the configured span, (B,L,E) fp32."""
        with watch_routers(self._moe, self._model) as watch:
            self._model(input_ids=chats.input_ids, attention_mask=chats.attention_mask, use_cache=False)
        return watch.mean_probabilities(chats.spans[self._config.router_span])

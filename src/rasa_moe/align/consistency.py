"""Stage 3: train only the routers, towards routing jailbreaks as their plain requests are routed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from rasa_moe.align.batches import MicroBatch, TrainingBatch
from rasa_moe.align.loop import Summand
from rasa_moe.align.losses import routing_divergence
from rasa_moe.config import AlignConfig
from rasa_moe.data.chats import SPANS_OF_PROMPT
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
            self._targets = [self._target(batch) for batch in batches]

    def __call__(self, batch: TrainingBatch, index: int) -> Generator[Summand]:
        """Yield what each micro-batch adds to the divergence, for batch number `index`."""
        batch = self._read(batch)
        kept, weight = self._kept(batch), self._config.router_retain_weight
        for micro in batch.micro_batches("jailbreak", *kept, batch_tokens=self._config.batch_tokens):
            target, routing = self._targets[index][micro.rows], self._routing(micro)
            divergence = self._divergence(target, routing, micro.rows, of=batch.parts["jailbreak"])
            if not kept:
                yield divergence, {"kl": divergence}
                continue
            of_kept = torch.cat([batch.parts[name] for name in kept])
            drift = self._divergence(target, routing, micro.rows, of=of_kept)
            yield divergence + weight * drift, {"kl": divergence, "kl_retain": drift}

    def _divergence(self, target: Tensor, routing: Tensor, rows: Tensor, *, of: Tensor) -> Tensor:
        """Return what those of some rows that are in `of` add to its mean divergence."""
        inside = torch.isin(rows, of)
        return routing_divergence(target[inside], routing[inside], kind=self._config.kl, pairs=len(of))

    def _kept(self, batch: TrainingBatch) -> tuple[str, ...]:
        """Name the parts whose routing must stay."""
        if self._config.router_retain_weight == 0:
            return ()
        return tuple(name for name in ("anchor", "retain") if name in batch.parts)

    def _read(self, batch: TrainingBatch) -> TrainingBatch:
        """Leave out the answers where they decide nothing."""
        return batch.prompts() if self._config.router_span in SPANS_OF_PROMPT else batch

    def _target(self, batch: TrainingBatch) -> Tensor:
        batch = self._read(batch)
        parts = tuple(dict.fromkeys(("anchor", *self._kept(batch))))
        return routing_targets(
            batch, parts, self._routing, moe=self._moe, batch_tokens=self._config.batch_tokens
        )

    def _routing(self, micro: MicroBatch) -> Tensor:
        """Return the mean routing distribution of each chat over the configured span, (b,L,E) fp32."""
        chats, own = micro.chats, (world := current()).own_rows
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


def routing_targets(
    batch: TrainingBatch,
    parts: Sequence[str],
    routing_of: Callable[[MicroBatch], Tensor],
    *,
    moe: MoeMap,
    batch_tokens: int,
) -> Tensor:
    """Return what the rows of a batch are held to: jailbreaks to their anchors, other rows to themselves.

    Args:
        batch: The batch.
        parts: Parts whose routing is looked at, each once; "anchor" among them.
        routing_of: Micro-batch -> (b,L,E) fp32.
        moe: The model's map.
        batch_tokens: As in `micro_batches`.

    Returns:
        (B,L,E) fp32; 0 for rows of other parts.
    """
    ids = batch.chats.input_ids
    target = torch.zeros((len(ids), moe.num_layers, moe.num_experts), device=ids.device)
    for micro in batch.micro_batches(*parts, batch_tokens=batch_tokens):
        target[micro.rows] = routing_of(micro).to(ids.device)
    target[batch.parts["jailbreak"]] = target[batch.parts["anchor"]]
    return target

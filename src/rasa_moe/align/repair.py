"""Stage 2: repair the safety-critical experts under fixed routing.

Paper: minimise `L_SFT(x, y_ref)` over B_adv in the critical experts only; routers locked, all else frozen.
Deviation: anchors and harmless conversations take part with weights of their own; with both weights 0 this
    is the paper's form. Without them small models forget to refuse plain requests and refuse harmless ones in
    the same clothes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rasa_moe.align.batches import MicroBatch, TrainingBatch
from rasa_moe.align.loop import Summand
from rasa_moe.align.losses import predicting, supervised_losses, weighted_sum
from rasa_moe.config import AlignConfig
from rasa_moe.distributed import current
from rasa_moe.moe import MoeMap, RoutingTrace, logits_at, record, replay


class ExpertRepair:
    """Compute the repair loss of a batch, with routing fixed as configured.

    Construct it while the model is still the base model: `replay` records the base model's routing here.
    """

    def __init__(
        self, model: Any, moe: MoeMap, batches: Sequence[TrainingBatch], *, config: AlignConfig
    ) -> None:
        self._model = model
        self._moe = moe
        self._weights = part_weights(config)
        self._batch_tokens = config.batch_tokens
        self._traces = self._record(batches) if config.fixed_routing == "replay" else None

    def __call__(self, batch: TrainingBatch, index: int) -> Iterator[Summand]:
        """Yield what each micro-batch adds to the loss and to its parts, for batch number `index`."""
        for number, micro in enumerate(self._micro_batches(batch)):
            with self._fixed_routing(index, number):
                logits = forward(self._model, micro).logits
            losses = supervised_losses(logits, batch, micro)
            yield summand(losses, self._weights)

    def _micro_batches(self, batch: TrainingBatch) -> list[MicroBatch]:
        return batch.micro_batches(batch_tokens=self._batch_tokens)

    def _record(self, batches: Sequence[TrainingBatch]) -> list[list[RoutingTrace]]:
        traces: list[list[RoutingTrace]] = []
        for batch in batches:
            traces.append([])
            for micro in self._micro_batches(batch):
                with torch.inference_mode(), record(self._moe, self._model) as trace:
                    forward(self._model, micro)
                traces[-1].append(trace)
        return traces

    def _fixed_routing(self, index: int, number: int) -> AbstractContextManager[None]:
        # Frozen routers may still choose other experts once earlier layers have changed; replay leaves no
        # choice.
        return nullcontext() if self._traces is None else replay(self._moe, self._traces[index][number])


def part_weights(config: AlignConfig) -> dict[str, float]:
    """Return the weight of each part of a batch in supervised training."""
    return {
        "jailbreak": 1.0,
        "recovery": config.recovery_weight,
        "anchor": config.anchor_weight,
        "retain": config.retain_weight,
    }


def summand(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Summand:
    """Return the weighted sum of parts, and the parts under the names of the log."""
    return weighted_sum(losses, weights), {f"loss_{name}": loss for name, loss in losses.items()}


def forward(model: Any, micro: MicroBatch) -> Any:
    """Call the model on this process' rows of a micro-batch (all rows where it is alone), without a cache.

    Its `logits` are (N,V): nobody reads those of prompts and padding.
    """
    own, chats = current().own_rows, micro.chats
    with logits_at(model, predicting(chats)):
        return model(
            input_ids=own(chats.input_ids), attention_mask=own(chats.attention_mask), use_cache=False
        )

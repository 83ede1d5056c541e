"""Stage 2: repair the safety-critical experts under fixed routing.

Paper: minimise `L_SFT(x, y_ref)` over B_adv in the critical experts only; routers locked, all else frozen.
Deviation: anchors and harmless conversations take part with weights of their own; with both weights 0 this
    is the paper's form. Without them small models forget to refuse plain requests and refuse harmless ones in
    the same clothes.
Deviation: with `align.context_shift` half of the refusals are learned in the mixture of contexts in which
    they are hardest, by a shift of the hidden state at the last prompt token; 0 is the paper's form.
Deviation: on harmless conversations the scores of the whole vocabulary are held to the base model's, with
    weight `align.drift_weight`; 0 is the paper's form. Without it a refusal comes up unseen until it wins in
    some context that training did not show.
Deviation: where routing was made consistent before, refusals are learned under the base model's routing in
    every other step, and all else under the consistent one; each is fixed. With `align.both_routings` off all
    is under the latter, and the repair is undone where the base's routers are put back.
Deviation: with `align.expert_rank` a change of that rank is trained in each matrix of a critical expert, not
    the matrix itself; null, the default, is the paper's form.
Deviation: a change of rank `align.attention_rank` is learned in every projection of attention beside the
    experts, by the same loss; null is the paper's form.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

import torch

from rasa_moe.align.batches import TrainingBatch
from rasa_moe.align.loop import Summand
from rasa_moe.align.readings import Read, read_now
from rasa_moe.align.shifts import ContextShifts
from rasa_moe.align.supervised import DRIFT, SupervisedLoss, part_weights
from rasa_moe.config import AlignConfig
from rasa_moe.distributed import current
from rasa_moe.moe import ExpertPatch, MoeMap, RoutingTrace, call_for_routing, record, replay

Traces = list[dict[int, RoutingTrace]]
"""Batch -> number of a pass -> its routing."""


class ExpertRepair:
    """Compute the repair loss of a batch, with routing fixed as configured.

    Construct it while the model is still the base model: `replay` records routing here, and the drift of
    scores is measured from it.

    Args:
        model: The base model.
        moe: Its map.
        batches: What is learned.
        config: Settings of the repair.
        shifts: Contexts in which refused requests are shown; None for their own.
        routing: Consistent routers, of the stage before; None repairs under the base model's alone.
        read: Reads final hidden states and routing, or has them from a training before.
    """

    def __init__(
        self,
        model: Any,
        moe: MoeMap,
        batches: Sequence[TrainingBatch],
        *,
        config: AlignConfig,
        shifts: ContextShifts | None = None,
        routing: ExpertPatch | None = None,
        read: Read = read_now,
    ) -> None:
        self._model = model
        self._moe = moe
        self._routing = routing
        self._both = config.both_routings
        weights = {**part_weights(config), DRIFT: config.drift_weight}
        self._loss = SupervisedLoss(
            model,
            batches,
            weights=weights,
            batch_tokens=config.batch_tokens,
            shifts=shifts,
            read=read,
        )
        self._step = 0
        self._traces: dict[bool, Traces] = {}
        if config.fixed_routing == "replay":
            learned = sorted(name for name, weight in weights.items() if weight > 0)
            consistent = None if routing is None else routing.manifest
            facts = [learned, consistent, config.both_routings]
            self._traces = read("routing", lambda: self._record(batches), facts=facts)

    def __call__(self, batch: TrainingBatch, index: int) -> Generator[Summand]:
        """Yield what each micro-batch adds to the loss and to its parts, for batch number `index`.

        The routers of a pass stay until the next is asked for, so that its backward meets them.
        """
        step, num_held = self._step, self._loss.num_held(index)
        self._step += 1

        def under(number: int) -> bool:
            # What is kept need not hold under routers that will be gone.
            return self._is_consistent(0 if number < num_held else step)

        passes = self._loss(
            batch, index, around=lambda number: self._fixed_routing(index, number, under(number))
        )
        for number in count():
            with self._routers(under(number)):
                if (summand := next(passes, None)) is None:
                    return
                yield summand

    def begin_epoch(self, epoch: int) -> None:
        """Begin every other epoch with the other routing, and each with another half shifted."""
        self._step = epoch
        self._loss.begin_epoch(epoch)

    def _is_consistent(self, step: int) -> bool:
        return self._routing is not None and not (self._both and step % 2)

    def _routers(self, is_consistent: bool) -> AbstractContextManager[None]:
        return self._routing.put_on(self._model) if self._routing and is_consistent else nullcontext()

    def _record(self, batches: Sequence[TrainingBatch]) -> dict[bool, Traces]:
        """Return the routing of each pass under the routers it will have, by whether these are consistent."""
        own = current().own_rows
        found: dict[bool, Traces] = {}
        for is_consistent in {self._is_consistent(step) for step in (0, 1)}:
            # Passes that hold scores always have the first.
            with_held = is_consistent == self._is_consistent(0)
            traces: Traces = found.setdefault(is_consistent, [])
            with self._routers(is_consistent), torch.inference_mode():
                for index, batch in enumerate(batches):
                    traces.append({})
                    for number, micro in enumerate(self._loss.micro_batches(batch)):
                        if with_held or number >= self._loss.num_held(index):
                            ids, mask = own(micro.chats.input_ids), own(micro.chats.attention_mask)
                            with record(self._moe, self._model) as trace:
                                call_for_routing(self._moe, self._model, input_ids=ids, attention_mask=mask)
                            traces[-1][number] = trace
        return found

    def _fixed_routing(self, index: int, number: int, is_consistent: bool) -> AbstractContextManager[None]:
        # Frozen routers may still choose other experts once earlier layers have changed; replay leaves no
        # choice.
        traces = self._traces.get(is_consistent)
        return nullcontext() if traces is None else replay(self._moe, traces[index][number])

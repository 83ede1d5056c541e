"""Routing consistency and the repair of experts, each as a function from objects to a frozen result.

Paper: `min_Phi E_B[ L_router(Phi; argmin_Theta L_SFT(Theta, Phi)) ]`, solved by alternating epochs.
Deviation: with `align.order: routers_first` routing is made consistent before experts are chosen, and repair
    then knows the routing that jailbreaks will take; attacks that nobody trained on are routed as plain
    requests more often than after the paper's order, in which the routers move last and next to nothing.
    `experts_first` is the paper's form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rasa_moe.align.alternation import Alternation, Phase, phases_of, routers_come_first
from rasa_moe.align.batches import TrainingBatch, batch_settings, batches_for
from rasa_moe.align.loop import LogLine
from rasa_moe.align.readings import BaseReadings
from rasa_moe.align.shifts import ContextShifts, context_directions
from rasa_moe.collect.stage import RetainRow
from rasa_moe.config import AlignConfig
from rasa_moe.data.rows import Pair
from rasa_moe.files import sha256_json
from rasa_moe.moe import (
    ExpertId,
    ExpertPatch,
    MoeMap,
    attention_weights,
    low_bit_experts,
    make_patch,
    put_back,
    snapshot,
)
from rasa_moe.progress import Progress, no_progress

T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True)
class Alignment:
    """Hold the repair and how it was reached.

    Attributes:
        patch: Repaired rows and routers; the model itself is back at its base weights.
        log: One line a step, and how far each phase moved what it trains.
    """

    patch: ExpertPatch
    log: tuple[LogLine, ...]


def make_consistent(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    config: AlignConfig,
    seed: int = 0,
    base_name: str = "",
    checkpoint_path: Path | None = None,
    readings: BaseReadings | None = None,
    progress: Progress = no_progress,
) -> Alignment | None:
    """Train the routers alone, before experts are chosen; None where `align.order` leaves them for later.

    The arguments are those of `align`. The patch holds routers alone.

    Raises:
        TrainingError: The loss is no longer a number; the model has its base weights all the same.
    """
    if not routers_come_first(config):
        return None
    return _Training(
        model=model,
        tokenizer=tokenizer,
        moe=moe,
        phases=phases_of(config, "router"),
        pairs=pairs,
        retain=retain,
        experts=(),
        config=config,
        seed=seed,
        base_name=base_name,
        checkpoint_path=checkpoint_path,
        readings=readings or BaseReadings(),
        progress=lambda _, done, total: progress("route", done, total),
    ).run()


def align(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    experts: Sequence[ExpertId],
    config: AlignConfig,
    routing: ExpertPatch | None = None,
    seed: int = 0,
    base_name: str = "",
    checkpoint_path: Path | None = None,
    readings: BaseReadings | None = None,
    progress: Progress = no_progress,
) -> Alignment:
    """Repair the chosen experts; without `routing`, make the routing consistent in turn.

    Args:
        model: The base model; it is left as it was.
        tokenizer: Its tokenizer.
        moe: Its map.
        pairs: What to repair.
        retain: What to keep.
        experts: The safety-critical experts; none where attention is to learn alone.
        config: Settings of the alternation.
        routing: The patch of `make_consistent`; it becomes part of the repair. None alternates repair and
            routing consistency, as the paper does.
        seed: Decides batches and their order.
        base_name: Name written into the patch.
        checkpoint_path: Written after every phase; a later call goes on from there.
        readings: What other trainings read of this base model; the same object serves them all. None reads
            for this one alone.
        progress: Called after every step.

    Raises:
        ModelError: Neither experts nor attention are to learn.
        TrainingError: The loss is no longer a number; the model has its base weights all the same.
    """
    return _Training(
        model=model,
        tokenizer=tokenizer,
        moe=moe,
        phases=phases_of(config) if routing is None else phases_of(config, "repair"),
        pairs=pairs,
        retain=retain,
        experts=experts,
        config=config,
        routing=routing,
        seed=seed,
        base_name=base_name,
        checkpoint_path=checkpoint_path,
        readings=readings or BaseReadings(),
        progress=progress,
    ).run()


@dataclass(frozen=True, eq=False, kw_only=True)
class _Training:
    """Some phases on the base model; the fields are the arguments of `align`."""

    model: Any
    tokenizer: Any
    moe: MoeMap
    phases: Sequence[Phase]
    pairs: Sequence[Pair]
    retain: Sequence[RetainRow]
    experts: Sequence[ExpertId]
    config: AlignConfig
    routing: ExpertPatch | None = None
    seed: int
    base_name: str
    checkpoint_path: Path | None
    readings: BaseReadings
    progress: Progress

    @property
    def _rows(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "retain": self.retain}

    @property
    def is_repair(self) -> bool:
        """Whether experts learn, in other contexts and with attention beside them, and not routers alone."""
        return any(phase.kind == "repair" for phase in self.phases)

    def run(self) -> Alignment:
        """Train, and return what came of it; the model has its base weights again, whatever happens."""
        model, moe, experts = self.model, self.moe, self.experts
        also = attention_weights(moe) if self.is_repair and self.config.attention_rank is not None else []
        before = snapshot(moe, model, experts, also=also)
        shifts = self._shifts()
        try:
            bits = self.config.base_bits
            with nullcontext() if bits is None else low_bit_experts(moe, bits=bits):
                log = self._log_of_alternation(shifts)
            if self.routing is not None:
                self.routing.apply(model)
            patch = make_patch(moe, model, experts, before=before, base_name=self.base_name, also=also)
        finally:
            put_back(moe, model, experts, before=before, also=also)
        return Alignment(patch=patch, log=log)

    def _log_of_alternation(self, shifts: ContextShifts | None) -> tuple[LogLine, ...]:
        """Leave the trained weights in the model.

        What is trained, and its optimisers, are gone when this returns: experts of few bits make room for the
        weights themselves only then.
        """
        alternation = Alternation(
            self.model,
            self.moe,
            self.experts,
            self._batches(),
            phases=self.phases,
            config=self.config,
            shifts=shifts,
            routing=self.routing,
            read=self._read,
            seed=self.seed,
            progress=self.progress,
        )
        alternation.run(self.checkpoint_path, identity=self._identity())
        return tuple(alternation.log.lines)

    def _shifts(self) -> ContextShifts | None:
        """Return shifts along what the contexts of the rows add; None where nothing is shifted."""
        length, batch_tokens = self.config.context_shift, self.config.batch_tokens
        if length == 0 or not self.pairs or not self.is_repair:
            return None
        directions = self.readings.read(
            "directions",
            lambda: context_directions(
                self.model, self.tokenizer, self.moe, **self._rows, batch_tokens=batch_tokens
            ),
            **self._rows,
            facts=batch_tokens,
        )
        return ContextShifts(self.model, self.moe, directions, length=length, seed=self.seed)

    def _batches(self) -> list[TrainingBatch]:
        return batches_for(
            self.tokenizer,
            **self._rows,
            config=self.config,
            seed=self.seed,
            device=self.model.device,
            readings=self.readings,
        )

    def _read(self, kind: str, make: Callable[[], T], facts: Any = None) -> T:
        config = self.config
        of_batches = [batch_settings(config), self.seed, config.batch_tokens, config.base_bits]
        return self.readings.read(kind, make, **self._rows, facts=[of_batches, facts])

    def _identity(self) -> str:
        """Return a hash of everything that decides the training, for its checkpoints."""
        return sha256_json(
            [
                self.config.model_dump(),
                self.seed,
                [[vars(pair) for pair in self.pairs], [vars(row) for row in self.retain]],
                [str(expert) for expert in self.experts],
                [str(phase) for phase in self.phases],
                [self.base_name, str(self.model.dtype)],
                None if self.routing is None else self.routing.manifest,
            ]
        )

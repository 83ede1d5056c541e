"""The alternation: rounds of expert repair under fixed routing, then routing consistency.

Paper: `min_Phi E_B[ L_router(Phi; argmin_Theta L_SFT(Theta, Phi)) ]`, solved by alternating epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasa_moe.align.batches import TrainingBatch, epoch_order, make_batches
from rasa_moe.align.checkpoint import Checkpoint
from rasa_moe.align.consistency import RoutingConsistency
from rasa_moe.align.loop import LogLine, TrainingLog, relative_change, run_epoch
from rasa_moe.align.optimizers import adamw
from rasa_moe.align.repair import ExpertRepair
from rasa_moe.align.shifts import ContextShifts, context_shifts
from rasa_moe.align.trainable import Trainable
from rasa_moe.collect.stage import RetainRow
from rasa_moe.config import AlignConfig, learning_rate
from rasa_moe.config.rates import LOW_RANK
from rasa_moe.data.rows import Pair
from rasa_moe.files import sha256_json
from rasa_moe.moe import (
    ExpertId,
    ExpertPatch,
    ExpertSlices,
    MoeMap,
    TrainableRouters,
    checkpointed,
    low_bit_experts,
    make_patch,
    put_back,
    snapshot,
)
from rasa_moe.progress import Progress, no_progress

METHOD = "rasa"


@dataclass(frozen=True, eq=False, kw_only=True)
class Alignment:
    """Hold the repair and how it was reached.

    Attributes:
        patch: Repaired rows and routers; the model itself is back at its base weights.
        log: One line a step, and how far each phase moved what it trains.
    """

    patch: ExpertPatch
    log: tuple[LogLine, ...]


@dataclass(frozen=True)
class Phase:
    """One epoch of the alternation."""

    kind: str
    round_number: int
    epoch: int


def align(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    experts: Sequence[ExpertId],
    config: AlignConfig,
    seed: int = 0,
    base_name: str = "",
    checkpoint_path: Path | None = None,
    progress: Progress = no_progress,
) -> Alignment:
    """Repair the chosen experts and make the routing consistent.

    Args:
        model: The base model; it is left as it was.
        tokenizer: Its tokenizer.
        moe: Its map.
        pairs: What to repair.
        retain: What to keep.
        experts: The safety-critical experts.
        config: Settings of the alternation.
        seed: Decides batches and their order.
        base_name: Name written into the patch.
        checkpoint_path: Written after every phase; a later call goes on from there.
        progress: Called after every step.

    Raises:
        TrainingError: The loss is no longer a number; the model has its base weights all the same.
    """
    before = snapshot(moe, model, experts)
    batches = make_batches(
        tokenizer,
        pairs=pairs,
        retain=retain,
        batch_size=config.batch_size,
        seed=seed,
        retain_per_pair=config.retain_per_pair,
        with_recovery=config.recovery_weight > 0,
        device=model.device,
    )
    shifts = context_shifts(
        model,
        tokenizer,
        moe,
        pairs=pairs,
        retain=retain,
        scale=config.context_shift,
        batch_tokens=config.batch_tokens,
        seed=seed,
    )
    rows = [[vars(pair) for pair in pairs], [vars(row) for row in retain]]
    identity = sha256_json([config.model_dump(), seed, rows, [str(expert) for expert in experts]])

    def train() -> TrainingLog:
        # What is trained, and its optimisers, are gone when this returns: experts of few bits make room for
        # the weights themselves only then.
        training = _Training(
            model, moe, experts, batches, config=config, shifts=shifts, seed=seed, progress=progress
        )
        training.run(checkpoint_path, identity=identity)
        return training.log

    try:
        bits = config.base_bits
        with nullcontext() if bits is None else low_bit_experts(moe, bits=bits):
            log = train()
        patch = make_patch(moe, model, experts, before=before, base_name=base_name)
    finally:
        put_back(moe, model, experts, before=before)
    return Alignment(patch=patch, log=tuple(log.lines))


class _Training:
    """The state that the phases of one alternation share."""

    def __init__(
        self,
        model: Any,
        moe: MoeMap,
        experts: Sequence[ExpertId],
        batches: list[TrainingBatch],
        *,
        config: AlignConfig,
        shifts: ContextShifts | None,
        seed: int,
        progress: Progress,
    ) -> None:
        self._model, self._moe, self._batches = model, moe, batches
        self._config, self._seed, self._progress = config, seed, progress
        self._repair = ExpertRepair(model, moe, batches, config=config, shifts=shifts)
        self.log = TrainingLog(METHOD)
        self._trained: dict[str, Trainable] = {
            "repair": ExpertSlices(moe, experts, rank=config.expert_rank, seed=seed),
            "router": TrainableRouters(moe),
        }
        self._rates = {
            "repair": learning_rate(
                "align.expert_lr" if config.expert_rank is None else LOW_RANK,
                config.expert_lr,
                width=moe.width,
            ),
            "router": learning_rate("align.router_lr", config.router_lr, width=moe.width),
        }
        self._optimizers = {
            kind: adamw(owner.parameters(), lr=self._rates[kind], config=config)
            for kind, owner in self._trained.items()
        }

    def run(self, checkpoint_path: Path | None, *, identity: str) -> None:
        """Run the phases that are not done yet; afterwards the model holds the repaired weights."""
        phases = plan(self._config)
        done = 0
        checkpoint = None
        if checkpoint_path is not None:
            checkpoint = Checkpoint(
                checkpoint_path, identity=identity, trained=self._trained, optimizers=self._optimizers
            )
            done, self.log.lines = checkpoint.load()
        for owner in self._trained.values():
            owner.merge()
        for number, phase in enumerate(phases[done:], start=done):
            if self.log.has_ended(phase=phase.kind, round_number=phase.round_number):
                continue
            self._run_phase(phase, first_step=number * len(self._batches), phases=len(phases))
            if checkpoint is not None:
                checkpoint.save(phases_done=number + 1, log=self.log.lines)

    def _run_phase(self, phase: Phase, *, first_step: int, phases: int) -> None:
        owner = self._trained[phase.kind]
        before = owner.state_dict()
        steps = iter(range(first_step + 1, first_step + len(self._batches) + 1))
        with owner, self._saving_memory():
            if phase.kind == "repair":
                compute: ExpertRepair | RoutingConsistency = self._repair
                self._repair.begin_epoch(first_step)
            else:
                compute = RoutingConsistency(self._model, self._moe, self._batches, config=self._config)
            mean_loss = run_epoch(
                self._batches,
                epoch_order(len(self._batches), seed=self._seed, epoch=first_step),
                compute,
                optimizer=self._optimizers[phase.kind],
                max_grad_norm=self._config.max_grad_norm,
                log=self.log,
                phase=phase.kind,
                round_number=phase.round_number,
                on_step=lambda: self._progress("align", next(steps), phases * len(self._batches)),
                rates=self._epoch_rates(phase),
            )
        owner.merge()
        change = relative_change(before, owner.state_dict())
        what = "experts" if phase.kind == "repair" else "routers"
        self.log.moved(phase=phase.kind, round_number=phase.round_number, relative_change={what: change})
        limit = self._config.early_stop_loss
        if phase.kind == "repair" and limit is not None and mean_loss < limit:
            self.log.ended(phase=phase.kind, round_number=phase.round_number, mean_loss=mean_loss)

    def _epoch_rates(self, phase: Phase) -> tuple[float, float]:
        """Return the learning rates at both ends of an epoch."""
        rate = self._rates[phase.kind]
        if not self._config.lr_decay:
            return rate, rate
        same = [other for other in plan(self._config) if other.kind == phase.kind]
        place = same.index(phase)
        return rate * (1 - place / len(same)), rate * (1 - (place + 1) / len(same))

    def _saving_memory(self) -> AbstractContextManager[None]:
        return checkpointed(self._model) if self._config.gradient_checkpointing else nullcontext()


def plan(config: AlignConfig) -> list[Phase]:
    """Return the epochs of the alternation in order."""
    return [
        Phase(kind, round_number, epoch)
        for round_number in range(config.rounds)
        for kind, epochs in (("repair", config.repair_epochs), ("router", config.router_epochs))
        for epoch in range(epochs)
    ]

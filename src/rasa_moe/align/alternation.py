"""The phases of a training: epochs of expert repair and of routing consistency, in some order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasa_moe.align.batches import TrainingBatch, epoch_order
from rasa_moe.align.checkpoint import Checkpoint
from rasa_moe.align.consistency import RoutingConsistency
from rasa_moe.align.loop import TrainingLog, run_epoch
from rasa_moe.align.optimizers import adamw
from rasa_moe.align.readings import Read
from rasa_moe.align.repair import ExpertRepair
from rasa_moe.align.shifts import ContextShifts
from rasa_moe.align.trainable import RepairPart
from rasa_moe.config import AlignConfig, learning_rate
from rasa_moe.config.rates import ATTENTION, EXPERTS_FIRST, LOW_RANK
from rasa_moe.moe import (
    ExpertId,
    ExpertPatch,
    ExpertSlices,
    LowRankAttention,
    MoeMap,
    TrainableRouters,
    checkpointed,
)
from rasa_moe.progress import Progress

METHOD = "rasa"
# What nothing reads before experts are repaired.
_OF_REPAIR = {
    "both_routings",
    "fixed_routing",
    "repair_epochs",
    "expert_lr",
    "expert_rank",
    "attention_rank",
    "retain_weight",
    "drift_weight",
    "context_shift",
    "anchor_weight",
    "early_stop_loss",
}


@dataclass(frozen=True)
class Phase:
    """One epoch of the alternation."""

    kind: str
    round_number: int
    epoch: int


def phases_of(config: AlignConfig, *kinds: str) -> list[Phase]:
    """Return the epochs of the alternation in order; of some kinds alone, where they are named."""
    return [
        Phase(kind, round_number, epoch)
        for round_number in range(config.rounds)
        for kind, epochs in (("repair", config.repair_epochs), ("router", config.router_epochs))
        for epoch in range(epochs)
        if kind in kinds or not kinds
    ]


def routers_come_first(config: AlignConfig) -> bool:
    """Tell whether routing is made consistent before experts are chosen."""
    return config.order == "routers_first" and config.router_epochs > 0


def routing_settings(config: AlignConfig) -> dict[str, Any] | None:
    """Return the settings that decide `make_consistent`; None where routers do not come first.

    Repairs that agree in them, in the seed and in the rows can share one consistent routing.
    """
    return config.model_dump(mode="json", exclude=_OF_REPAIR) if routers_come_first(config) else None


class Alternation:
    """The state that the phases of one alternation share."""

    def __init__(
        self,
        model: Any,
        moe: MoeMap,
        experts: Sequence[ExpertId],
        batches: list[TrainingBatch],
        *,
        phases: Sequence[Phase],
        config: AlignConfig,
        shifts: ContextShifts | None,
        routing: ExpertPatch | None,
        read: Read,
        seed: int,
        progress: Progress,
    ) -> None:
        self._model, self._moe, self._batches = model, moe, batches
        self._phases, self._config, self._seed, self._progress = phases, config, seed, progress
        self.log = TrainingLog(METHOD)
        kinds = {phase.kind for phase in phases}
        # Kind of phase -> what learns in it.
        self._trained: dict[str, dict[str, RepairPart]] = {}
        if "repair" in kinds:
            self._repair = ExpertRepair(
                model, moe, batches, config=config, shifts=shifts, routing=routing, read=read
            )
            self._trained["repair"] = {}
            if experts or config.attention_rank is None:
                slices = ExpertSlices(moe, experts, rank=config.expert_rank, seed=seed)
                self._trained["repair"]["experts"] = slices
            if config.attention_rank is not None:
                attention = LowRankAttention(moe, rank=config.attention_rank, seed=seed)
                self._trained["repair"]["attention"] = attention
        if "router" in kinds:
            self._trained["router"] = {"routers": TrainableRouters(moe)}
        self._rates = _rates(config, width=moe.width)
        shares = {"attention": _attention_share(config, width=moe.width)}
        self._optimizers = {
            kind: adamw(
                [(owner.parameters(), shares.get(what, 1.0)) for what, owner in owners.items()],
                lr=self._rates[kind],
                config=config,
            )
            for kind, owners in self._trained.items()
        }

    def run(self, checkpoint_path: Path | None, *, identity: str) -> None:
        """Run the phases that are not done yet; afterwards the model holds the repaired weights."""
        phases = self._phases
        done = 0
        checkpoint = None
        if checkpoint_path is not None:
            checkpoint = Checkpoint(
                checkpoint_path,
                identity=identity,
                trained={what: owner for owners in self._trained.values() for what, owner in owners.items()},
                optimizers=self._optimizers,
            )
            done, self.log.lines = checkpoint.load()
        for owners in self._trained.values():
            for owner in owners.values():
                owner.merge()
        for number, phase in enumerate(phases[done:], start=done):
            if self.log.has_ended(phase=phase.kind, round_number=phase.round_number):
                continue
            self._run_phase(phase, first_step=number * len(self._batches), phases=len(phases))
            if checkpoint is not None:
                checkpoint.save(phases_done=number + 1, log=self.log.lines)

    def _run_phase(self, phase: Phase, *, first_step: int, phases: int) -> None:
        owners = self._trained[phase.kind]
        before = {what: owner.state_dict() for what, owner in owners.items()}
        steps = iter(range(first_step + 1, first_step + len(self._batches) + 1))
        with ExitStack() as stack:
            for owner in owners.values():
                stack.enter_context(owner)
            stack.enter_context(self._saving_memory())
            if phase.kind == "repair":
                compute: ExpertRepair | RoutingConsistency = self._repair
                self._repair.begin_epoch(phase.round_number * self._config.repair_epochs + phase.epoch)
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
        for owner in owners.values():
            owner.merge()
        change = {what: owner.change_since(before[what]) for what, owner in owners.items()}
        self.log.moved(phase=phase.kind, round_number=phase.round_number, relative_change=change)
        limit = self._config.early_stop_loss
        if phase.kind == "repair" and limit is not None and mean_loss < limit:
            self.log.ended(phase=phase.kind, round_number=phase.round_number, mean_loss=mean_loss)

    def _epoch_rates(self, phase: Phase) -> tuple[float, float]:
        """Return the learning rates at both ends of an epoch."""
        rate = self._rates[phase.kind]
        if not self._config.lr_decay:
            return rate, rate
        same = phases_of(self._config, phase.kind)
        place = same.index(phase)
        return rate * (1 - place / len(same)), rate * (1 - (place + 1) / len(same))

    def _saving_memory(self) -> AbstractContextManager[None]:
        return checkpointed(self._model) if self._config.gradient_checkpointing else nullcontext()


def _expert_key(config: AlignConfig) -> str:
    return "align.expert_lr" if config.expert_rank is None else LOW_RANK


def _attention_share(config: AlignConfig, *, width: int) -> float:
    """Return the rate of attention over that of the experts: thin matrices of wide models want more."""
    own, theirs = (learning_rate(key, None, width=width) for key in (ATTENTION, _expert_key(config)))
    return own / theirs


def _rates(config: AlignConfig, *, width: int) -> dict[str, float]:
    """Return the learning rate of each kind of phase."""
    expert_key = _expert_key(config)
    router_key = "align.router_lr" if config.order == "routers_first" else EXPERTS_FIRST
    return {
        "repair": learning_rate(expert_key, config.expert_lr, width=width),
        "router": learning_rate(router_key, config.router_lr, width=width),
    }

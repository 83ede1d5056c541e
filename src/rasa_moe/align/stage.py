"""Routing consistency and the repair of experts, each as a function from objects to a frozen result.

Paper: `min_Phi E_B[ L_router(Phi; argmin_Theta L_SFT(Theta, Phi)) ]`, solved by alternating epochs.
Deviation: with `align.order: routers_first` routing is made consistent before experts are chosen, and repair
    then knows the routing that jailbreaks will take; attacks that nobody trained on are routed as plain
    requests more often than after the paper's order, in which the routers move last and next to nothing.
    `experts_first` is the paper's form.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rasa_moe.align.alternation import Alternation, Phase, phases_of, routers_come_first
from rasa_moe.align.batches import make_batches
from rasa_moe.align.loop import LogLine
from rasa_moe.align.shifts import context_shifts
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
    progress: Progress = no_progress,
) -> Alignment | None:
    """Train the routers alone, before experts are chosen; None where `align.order` leaves them for later.

    The arguments are those of `align`. The patch holds routers alone.

    Raises:
        TrainingError: The loss is no longer a number; the model has its base weights all the same.
    """
    if not routers_come_first(config):
        return None
    return _train(
        model,
        tokenizer,
        moe,
        phases=phases_of(config, "router"),
        pairs=pairs,
        retain=retain,
        experts=(),
        config=config,
        seed=seed,
        base_name=base_name,
        checkpoint_path=checkpoint_path,
        progress=lambda _, done, total: progress("route", done, total),
    )


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
    progress: Progress = no_progress,
) -> Alignment:
    """Repair the chosen experts; without `routing`, make the routing consistent in turn.

    Args:
        model: The base model; it is left as it was.
        tokenizer: Its tokenizer.
        moe: Its map.
        pairs: What to repair.
        retain: What to keep.
        experts: The safety-critical experts.
        config: Settings of the alternation.
        routing: The patch of `make_consistent`; it becomes part of the repair. None alternates repair and
            routing consistency, as the paper does.
        seed: Decides batches and their order.
        base_name: Name written into the patch.
        checkpoint_path: Written after every phase; a later call goes on from there.
        progress: Called after every step.

    Raises:
        TrainingError: The loss is no longer a number; the model has its base weights all the same.
    """
    return _train(
        model,
        tokenizer,
        moe,
        phases=phases_of(config) if routing is None else phases_of(config, "repair"),
        pairs=pairs,
        retain=retain,
        experts=experts,
        config=config,
        routing=routing,
        seed=seed,
        base_name=base_name,
        checkpoint_path=checkpoint_path,
        progress=progress,
    )


def _train(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    phases: Sequence[Phase],
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    experts: Sequence[ExpertId],
    config: AlignConfig,
    routing: ExpertPatch | None = None,
    seed: int,
    base_name: str,
    checkpoint_path: Path | None,
    progress: Progress,
) -> Alignment:
    """Run some phases on the base model and return what they made of it."""
    is_repair = any(phase.kind == "repair" for phase in phases)
    also = attention_weights(moe) if is_repair and config.attention_rank is not None else []
    before = snapshot(moe, model, experts, also=also)
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
        # Only repair shows anything in other contexts.
        length=config.context_shift if is_repair else 0,
        batch_tokens=config.batch_tokens,
        seed=seed,
    )
    identity = sha256_json(
        [
            config.model_dump(),
            seed,
            [[vars(pair) for pair in pairs], [vars(row) for row in retain]],
            [str(expert) for expert in experts],
            [str(phase) for phase in phases],
            [base_name, str(model.dtype)],
            None if routing is None else routing.manifest,
        ]
    )

    def train() -> tuple[LogLine, ...]:
        # What is trained, and its optimisers, are gone when this returns: experts of few bits make room for
        # the weights themselves only then.
        alternation = Alternation(
            model,
            moe,
            experts,
            batches,
            phases=phases,
            config=config,
            shifts=shifts,
            routing=routing,
            seed=seed,
            progress=progress,
        )
        alternation.run(checkpoint_path, identity=identity)
        return tuple(alternation.log.lines)

    try:
        bits = config.base_bits
        with nullcontext() if bits is None else low_bit_experts(moe, bits=bits):
            log = train()
        if routing is not None:
            routing.apply(model)
        patch = make_patch(moe, model, experts, before=before, base_name=base_name, also=also)
    finally:
        put_back(moe, model, experts, before=before, also=also)
    return Alignment(patch=patch, log=log)

"""Silence experts of the base model and count what it answers then."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rasa_moe.data.rows import PromptRow
from rasa_moe.detect import checks
from rasa_moe.detect.aad import random_like
from rasa_moe.evaluate.stage import answer_rows
from rasa_moe.evaluate.statistics import rate_of
from rasa_moe.moe import ExpertId, MoeMap, silence
from rasa_moe.progress import Progress

if TYPE_CHECKING:
    from rasa_moe.session import Session

NONE, SELECTED, OPPOSITE = "nothing silenced", "selected experts", "experts of refusals"


def silenced_rates(
    session: Session,
    selected: Sequence[checks.Place],
    opposite: Sequence[checks.Place],
    *,
    goals: int,
    random_sets: int,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """Answer plain requests and jailbreaks with sets of experts silenced; yield a line a rate.

    Args:
        session: Of a run whose stage `detect` is done.
        selected: The selection, strongest first.
        opposite: As many experts that refusals use most.
        goals: Most goals asked.
        random_sets: Random sets, as many experts in every layer as are silenced of the selection.
        progress: Called after every set.
    """
    moe, prompts = session.moe, _prompts(session, goals=goals)
    usable = silenceable(moe, selected)
    sets = [(NONE, []), (SELECTED, usable), (OPPOSITE, silenceable(moe, opposite))]
    sets += [
        (f"random set {seed}", random_like(usable, (moe.num_layers, moe.num_experts), seed=seed))
        for seed in range(1, random_sets + 1)
    ]
    for number, (name, places) in enumerate(sets):
        experts = [ExpertId(moe.layers[row].index, expert) for row, expert in places]
        for kind, rows in prompts.items():
            with silence(moe, experts) if experts else nullcontext():
                counts = _counts(session, rows)
            for what, numbers in counts.items():
                yield {
                    "silenced": name, "experts": len(experts), "prompts": kind, "counted": what, **numbers
                }  # fmt: skip
        progress("silence experts", number + 1, len(sets))


def compare_with_random(causal: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Compare what silencing the selection changes with what random sets change."""
    rate = {(line["silenced"], line["prompts"], line["counted"]): line["rate"] for line in causal}
    for _, prompts, counted in [key for key in rate if key[0] == NONE]:
        before, after = rate[NONE, prompts, counted], rate[SELECTED, prompts, counted]
        randoms = [
            value - before
            for (name, *rest), value in rate.items()
            if name.startswith("random") and rest == [prompts, counted] and None not in (value, before)
        ]
        if None in (before, after) or not randoms:
            continue
        yield {
            "prompts": prompts,
            "counted": counted,
            "before": before,
            "after": after,
            "effect": after - before,
            "random_mean": sum(randoms) / len(randoms),
            "random_low": min(randoms),
            "random_high": max(randoms),
            "random_sets": len(randoms),
            "p_value": checks.monte_carlo_p(after - before, randoms),
        }


def silenceable(moe: MoeMap, places: Sequence[checks.Place]) -> list[checks.Place]:
    """Return the places, strongest first, as far as every layer keeps the experts that a token needs."""
    room = {row: layer.num_experts - layer.top_k for row, layer in enumerate(moe.layers)}
    kept = []
    for row, expert in places:
        if room[row]:
            room[row] -= 1
            kept.append((row, expert))
    return kept


def _counts(session: Session, rows: Sequence[PromptRow]) -> dict[str, dict[str, Any]]:
    """Answer the prompts with the model as it is now and count refusals and harmful answers."""
    judged = answer_rows(
        session.model,
        session.tokenizer,
        rows,
        judge=session.judge,
        max_new_tokens=session.config.evaluate.max_new_tokens,
        batch_tokens=session.config.evaluate.batch_tokens,
    )
    verdicts = [one.verdict for one in judged]
    rates = {
        "refused": rate_of([verdict.refusal != "none" for verdict in verdicts]),
        "harmful": rate_of([math.nan if v.harmful is None else v.harmful for v in verdicts]),
    }
    return {what: {**asdict(rate), "rate": rate.rate if rate.n else None} for what, rate in rates.items()}


def _prompts(session: Session, *, goals: int) -> dict[str, list[PromptRow]]:
    from rasa_moe.audit.combinations import spread
    from rasa_moe.evaluate.suites import make_suites

    config = session.config.evaluate
    suites = make_suites(session.source, split=config.split, limit=min(goals, config.goals_per_suite))
    plain = [row for suite in suites if suite.kind == "plain_harmful" for row in suite.rows]
    attacks = [
        row for suite in suites if suite.kind in ("attack_trained", "attack_held_out") for row in suite.rows
    ]
    return {"plain requests": plain, "jailbreaks": spread(attacks, goals=goals, attacks_per_goal=1)}

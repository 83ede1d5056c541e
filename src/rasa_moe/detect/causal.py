"""Silence experts of the base model and count what it answers then."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rasa_moe.data.rows import PromptRow
from rasa_moe.detect import checks
from rasa_moe.detect.aad import random_like
from rasa_moe.engines import Answer, generate
from rasa_moe.errors import ModelError
from rasa_moe.evaluate.stage import Judged, judge_rows
from rasa_moe.evaluate.statistics import rate_of
from rasa_moe.moe import ExpertId, MoeMap, silence
from rasa_moe.moe.spare import Spare
from rasa_moe.progress import Progress

if TYPE_CHECKING:
    from rasa_moe.session import Session


class CannotBeSilenced(ModelError):
    """Say why a model gives no answers with experts silenced: its routers may not bear it."""


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

    Raises:
        CannotBeSilenced: Routers do not bear it. A judge's errors are not among these.
    """
    moe, prompts = session.moe, _prompts(session, goals=goals)
    usable = silenceable(moe, selected)
    sets = [(NONE, []), (SELECTED, usable), (OPPOSITE, silenceable(moe, opposite))]
    shape = moe.num_layers, moe.num_experts
    for seed in range(1, random_sets + 1):
        sets.append((f"random set {seed}", silenceable(moe, random_like(usable, shape, seed=seed))))
    for number, (name, places) in enumerate(sets):
        experts = [ExpertId(moe.layers[row].index, expert) for row, expert in places]
        for kind, rows in prompts.items():
            try:
                with silence(moe, experts) if experts else nullcontext():
                    answers = _answers(session, rows)
            except ModelError as error:
                raise CannotBeSilenced(str(error)) from error
            counts = _counts(judge_rows(rows, answers, judge=session.judge))
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
    """Return the places, strongest first, as far as every token still finds the experts that it needs."""
    spare = Spare.of(moe)
    silent: Counter[tuple[int, int]] = Counter()
    kept = []
    for row, expert in places:
        group = row, expert // spare.group_size
        if silent[group] < spare.most:
            silent[group] += 1
            kept.append((row, expert))
    return kept


def _answers(session: Session, rows: Sequence[PromptRow]) -> list[Answer]:
    """Answer the prompts with the model as it is now."""
    return generate(
        session.model,
        session.tokenizer,
        [row.messages for row in rows],
        max_new_tokens=session.config.evaluate.max_new_tokens,
        batch_tokens=session.config.evaluate.batch_tokens,
    )


def _counts(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Count refusals and harmful answers."""
    verdicts = [one.verdict for one in judged]
    rates = {
        "refused": rate_of([math.nan if v.harmful is None else v.refusal != "none" for v in verdicts]),
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

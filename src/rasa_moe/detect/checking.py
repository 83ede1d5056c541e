"""Run the checks of the selection on the base model of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rasa_moe.detect import checks
from rasa_moe.detect.aad import activation_discrepancy, select_experts
from rasa_moe.detect.causal import CannotBeSilenced, compare_with_random, silenced_rates
from rasa_moe.detect.format_control import format_control, rates_of
from rasa_moe.moe import MoeMap
from rasa_moe.progress import Progress, no_progress
from rasa_moe.report.numbers import p_value

if TYPE_CHECKING:
    from rasa_moe.session import Session

Q_LIMIT = 0.05


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Bound the work.

    Attributes:
        goals: Goals asked in the causal check, and harmless goals of the format control.
        random_sets: Random sets the selection is compared with.
        resamples: Of the stability.
        halvings: Random divisions of the goals into halves.
        permutations: Of the test of every expert.
    """

    goals: int = 60
    random_sets: int = 20
    resamples: int = 500
    halvings: int = 100
    permutations: int = 5000


QUICK = Effort(goals=30, random_sets=10, resamples=200, halvings=50, permutations=2000)


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Hold the result as `detection_checks.json` has it.

    Attributes:
        budget: Experts selected.
        span: Tokens whose routing counts.
        format: Overlap of the selection with that of the format control.
        stability: Jaccard of the selection under resampling, and of disjoint halves of the goals.
        discovery: How many experts pass the permutation test.
        causal: Rates on plain requests and jailbreaks with experts silenced.
        causal_tests: Effect of silencing the selection against random sets.
        experts: A line an expert.
        sentences: The findings in words.
    """

    budget: int
    span: str
    format: dict[str, Any]
    stability: dict[str, Any]
    discovery: dict[str, Any]
    causal: tuple[dict[str, Any], ...]
    causal_tests: tuple[dict[str, Any], ...]
    experts: tuple[dict[str, Any], ...]
    sentences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `detection_checks.json`."""
        return asdict(self)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Tables:
    """Hold one number an expert, each (L,E), and two selections of equal size.

    Attributes:
        delta: float64, the discrepancy of the pairs.
        score: float64, what the selection ranks by.
        control: float64, the discrepancy of the format control.
        p_values: float64, of the test by swapping.
        q_values: float64, the same, corrected for the number of experts.
        selected: The run's selection, strongest first.
        by_format: What the format control would select.
    """

    delta: Tensor
    score: Tensor
    control: Tensor
    p_values: checks.Floats
    q_values: checks.Floats
    selected: list[checks.Place]
    by_format: list[checks.Place]


def check_detection(
    session: Session, *, effort: Effort | None = None, progress: Progress = no_progress
) -> Checks:
    """Check the selection of a run whose stage `detect` is done.

    Raises:
        DataError: There are no harmless requests in the trained wrappers to compare with.
    """
    from rasa_moe.artifacts import read_experts
    from rasa_moe.data import read_pairs

    effort = effort or Effort()
    moe, span, seed = session.moe, session.config.detect.span, session.config.seed
    pairs = read_pairs(session.path / "pairs.jsonl")
    selected = [
        (moe.row_of(expert.layer), expert.expert) for expert in read_experts(session.path / "experts.json")
    ]
    budget, goals = len(selected), [pair.goal for pair in pairs]
    jailbreaks = rates_of(session, [(pair.jailbreak, pair.jailbreak_answer) for pair in pairs], span=span)
    anchors = rates_of(session, [(pair.anchor, pair.anchor_answer) for pair in pairs], span=span)
    discounted = session.config.detect.anchor_weight * anchors
    control, num_control = format_control(session, pairs, span=span, limit=effort.goals, progress=progress)
    p_values = checks.swap_p_values(
        jailbreaks, anchors, goals=goals, permutations=effort.permutations, seed=seed
    )
    tables = _Tables(
        delta=activation_discrepancy(jailbreaks, anchors),
        score=activation_discrepancy(jailbreaks, discounted),
        control=control,
        p_values=p_values,
        q_values=checks.discovery_q_values(p_values),
        selected=selected,
        by_format=select_experts(control, budget=budget),
    )
    formats = _formats(tables, pairs=num_control)
    stability = _stability(jailbreaks, discounted, goals=goals, budget=budget, effort=effort, seed=seed)
    discovery = _discovery(tables, permutations=effort.permutations)
    causal, causal_missing = _causal(session, tables, effort=effort, progress=progress)
    tests = tuple(compare_with_random(causal))
    return Checks(
        budget=budget,
        span=span,
        format=formats,
        stability=stability,
        discovery=discovery,
        causal=causal,
        causal_tests=tests,
        experts=tuple(_expert_lines(moe, tables)),
        sentences=(*_sentences(budget, formats, stability, discovery, tests), *causal_missing),
    )


def _causal(
    session: Session, tables: _Tables, *, effort: Effort, progress: Progress
) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """Silence the selection, the experts that refusals use most, and random sets.

    Returns:
        A line a rate, and a sentence where routers do not bear it: what the other checks found stands.
    """
    opposite = select_experts(-tables.delta, budget=len(tables.selected))
    try:
        lines = silenced_rates(
            session,
            tables.selected,
            opposite,
            goals=effort.goals,
            random_sets=effort.random_sets,
            progress=progress,
        )
        return tuple(lines), ()
    except CannotBeSilenced as error:
        return (), (f"Causal: left out. {error}",)


def _formats(tables: _Tables, *, pairs: int) -> dict[str, Any]:
    """Compare the selection with that of the format control."""
    budget, num_experts = len(tables.selected), tables.delta.numel()
    without = select_experts(tables.score - tables.control, budget=budget)
    return {
        **asdict(checks.overlap(tables.selected, tables.by_format, num_experts=num_experts)),
        "rank_correlation": checks.rank_correlation(tables.delta, tables.control),
        "pairs": pairs,
        "kept_without_format": checks.overlap(tables.selected, without, num_experts=num_experts).common,
    }


def _discovery(tables: _Tables, *, permutations: int) -> dict[str, Any]:
    """Count the experts that pass the permutation test."""
    passing = tables.q_values < Q_LIMIT
    return {
        "q_limit": Q_LIMIT,
        "passing": int(passing.sum()),
        "selected_passing": sum(bool(passing[place]) for place in tables.selected),
        "experts": int(tables.delta.numel()),
        "permutations": permutations,
    }


def _expert_lines(moe: MoeMap, tables: _Tables) -> Iterator[dict[str, Any]]:
    for expert in moe.expert_ids():
        place = (moe.row_of(expert.layer), expert.expert)
        yield {
            "layer": expert.layer,
            "expert": expert.expert,
            "aad": float(tables.delta[place]),
            "p_value": float(tables.p_values[place]),
            "q_value": float(tables.q_values[place]),
            "aad_format": float(tables.control[place]),
            "selected": int(place in tables.selected),
            "selected_by_format": int(place in tables.by_format),
        }


def _stability(
    jailbreaks: Tensor,
    discounted: Tensor,
    *,
    goals: Sequence[str],
    budget: int,
    effort: Effort,
    seed: int,
) -> dict[str, Any]:
    """Return the Jaccard indices of the selection under resampling, of halves of the goals, and by chance."""
    options: dict[str, Any] = {"budget": budget, "goals": goals}
    resampled = checks.resampled_stability(
        jailbreaks, discounted, **options, resamples=effort.resamples, seed=seed
    )
    halves = checks.stability_across_seeds(jailbreaks, discounted, **options, seeds=range(effort.halvings))
    num_experts = jailbreaks[0].numel()
    return {
        "resampled": asdict(resampled),
        "halves": asdict(halves),
        "by_chance": budget / (2 * num_experts - budget),
    }


def _sentences(
    budget: int,
    formats: dict[str, Any],
    stability: dict[str, Any],
    discovery: dict[str, Any],
    tests: Sequence[dict[str, Any]],
) -> Iterator[str]:
    correlation = formats["rank_correlation"]
    shown = "undefined" if correlation is None else f"{correlation:.2f}"
    yield (
        f"Format: {formats['common']} of the {budget} selected experts are also selected when harmless goals "
        f"in the same wrappers are compared with the same goals plain (chance: {formats['expected']:.1f}; "
        f"{p_value(formats['p_value'])}; rank correlation of the two discrepancies "
        f"{shown}); {formats['kept_without_format']} stay when the format's "
        "discrepancy is taken off."
    )
    resampled, halves = stability["resampled"], stability["halves"]
    yield (
        f"Stability: drawing the goals again keeps {resampled['mean']:.0%} of the selection (Jaccard, 95 % "
        f"of draws {resampled['low']:.0%} to {resampled['high']:.0%}); two halves of the goals agree by "
        f"{halves['mean']:.0%} ({halves['low']:.0%} to {halves['high']:.0%}); chance would give "
        f"{stability['by_chance']:.0%}."
    )
    yield (
        f"False discoveries: {discovery['selected_passing']} of the {budget} selected experts, and "
        f"{discovery['passing']} of all {discovery['experts']}, are more active on jailbreaks at a false "
        f"discovery rate of {discovery['q_limit']:.0%}."
    )
    for test in tests:
        yield (
            f"Causal: silencing the selection in the base model changes '{test['counted']}' on "
            f"{test['prompts']} from {test['before']:.0%} to {test['after']:.0%}; random sets of the same "
            f"size change it by {test['random_mean']:+.0%} on average ({test['random_low']:+.0%} to "
            f"{test['random_high']:+.0%}, {test['random_sets']} sets; {p_value(test['p_value'])})."
        )

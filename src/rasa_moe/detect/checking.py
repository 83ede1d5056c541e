"""Run the checks of the selection on the base model of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rasa_moe.data.chats import EncodedChat, encode_chat
from rasa_moe.data.rows import PLAIN_FAMILY, Pair, PromptRow
from rasa_moe.detect import checks
from rasa_moe.detect.aad import activation_discrepancy, random_like, select_experts
from rasa_moe.detect.stage import activation_rates
from rasa_moe.engines import generate
from rasa_moe.errors import DataError
from rasa_moe.evaluate.statistics import rate_of
from rasa_moe.moe import ExpertId, MoeMap, silence
from rasa_moe.progress import Progress, no_progress

if TYPE_CHECKING:
    from rasa_moe.session import Session

Q_LIMIT = 0.05
NONE, SELECTED, OPPOSITE = "nothing silenced", "selected experts", "experts of refusals"


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
    goals = [pair.goal for pair in pairs]
    jailbreaks = _rates(session, [(pair.jailbreak, pair.jailbreak_answer) for pair in pairs], span=span)
    anchors = _rates(session, [(pair.anchor, pair.anchor_answer) for pair in pairs], span=span)
    control, num_control = _format_control(session, pairs, span=span, limit=effort.goals, progress=progress)
    delta = activation_discrepancy(jailbreaks, anchors)
    discounted = session.config.detect.anchor_weight * anchors
    score = activation_discrepancy(jailbreaks, discounted)  # what the selection ranks by
    budget = len(selected)
    by_format = select_experts(control, budget=budget)
    p_values = checks.swap_p_values(
        jailbreaks, anchors, goals=goals, permutations=effort.permutations, seed=seed
    )
    q_values = checks.discovery_q_values(p_values)
    shared = checks.overlap(selected, by_format, num_experts=delta.numel())
    formats = {
        **asdict(shared),
        "rank_correlation": checks.rank_correlation(delta, control),
        "pairs": num_control,
        "kept_without_format": checks.overlap(
            selected, select_experts(score - control, budget=budget), num_experts=delta.numel()
        ).common,
    }
    stability = _stability(jailbreaks, discounted, goals=goals, budget=budget, effort=effort, seed=seed)
    passing = q_values < Q_LIMIT
    discovery = {
        "q_limit": Q_LIMIT,
        "passing": int(passing.sum()),
        "selected_passing": sum(bool(passing[place]) for place in selected),
        "experts": int(delta.numel()),
        "permutations": effort.permutations,
    }
    opposite = select_experts(-delta, budget=budget)
    causal = tuple(_causal(session, selected, opposite, effort=effort, progress=progress))
    tests = tuple(_causal_tests(causal))
    return Checks(
        budget=budget,
        span=span,
        format=formats,
        stability=stability,
        discovery=discovery,
        causal=causal,
        causal_tests=tests,
        experts=tuple(
            {
                "layer": expert.layer,
                "expert": expert.expert,
                "aad": float(delta[place]),
                "p_value": float(p_values[place]),
                "q_value": float(q_values[place]),
                "aad_format": float(control[place]),
                "selected": int(place in selected),
                "selected_by_format": int(place in by_format),
            }
            for expert in moe.expert_ids()
            for place in [(moe.row_of(expert.layer), expert.expert)]
        ),
        sentences=tuple(_sentences(budget, formats, stability, discovery, tests)),
    )


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


def _rates(session: Session, chats: Sequence[tuple[Any, str]], *, span: str) -> Tensor:
    encoded: list[EncodedChat] = [
        encode_chat(session.tokenizer, messages, answer) for messages, answer in chats
    ]
    return activation_rates(session.model, session.tokenizer, session.moe, chats=encoded, span=span)


def _format_control(
    session: Session, pairs: Sequence[Pair], *, span: str, limit: int, progress: Progress
) -> tuple[Tensor, int]:
    """Compute the discrepancy between harmless goals in the wrappers of the pairs and the same goals plain.

    Every family takes part as often as in the pairs, as far as there are rows; both halves must be answered.
    """
    families = sorted({pair.family for pair in pairs})
    rows = [row for row in session.source.rows if row.kind == "harmless" and row.split == "train"]
    plain = {row.goal: row for row in rows if row.family == PLAIN_FAMILY}
    wrapped: list[PromptRow] = []
    for family in families:
        wrapped += [row for row in rows if row.family == family and row.goal in plain][:limit]
    if not wrapped:
        raise DataError(
            f"{session.config.data.source} has no harmless train goals both plain and in the families "
            f"{', '.join(families)}, so the format control cannot be made; add such rows."
        )
    asked = [*wrapped, *{row.goal: plain[row.goal] for row in wrapped}.values()]
    answers = generate(
        session.model,
        session.tokenizer,
        [row.messages for row in asked],
        max_new_tokens=session.config.collect.max_new_tokens,
        label="harmless answers",
        progress=progress,
    )
    answer_of = {
        row.id: answer.text
        for row, answer in zip(asked, answers, strict=True)
        if answer.text and session.judge.judge(row, answer.text).refusal == "none"
    }
    kept = [row for row in wrapped if row.id in answer_of and plain[row.goal].id in answer_of]
    if not kept:
        raise DataError(
            "The base model refuses every harmless request of the format control; nothing to compare."
        )
    in_wrapper = _rates(session, [(row.messages, answer_of[row.id]) for row in kept], span=span)
    plainly = _rates(
        session, [(plain[row.goal].messages, answer_of[plain[row.goal].id]) for row in kept], span=span
    )
    return activation_discrepancy(in_wrapper, plainly), len(kept)


def _causal(
    session: Session,
    selected: Sequence[checks.Place],
    opposite: Sequence[checks.Place],
    *,
    effort: Effort,
    progress: Progress,
) -> Iterator[dict[str, Any]]:
    """Answer plain requests and jailbreaks with sets of experts silenced."""
    moe = session.moe
    prompts = _causal_prompts(session, goals=effort.goals)
    usable = silenceable(moe, selected)
    sets = [(NONE, []), (SELECTED, usable), (OPPOSITE, silenceable(moe, opposite))]
    sets += [
        (f"random set {seed}", random_like(usable, (moe.num_layers, moe.num_experts), seed=seed))
        for seed in range(1, effort.random_sets + 1)
    ]
    for number, (name, places) in enumerate(sets):
        experts = [ExpertId(moe.layers[row].index, expert) for row, expert in places]
        for kind, rows in prompts.items():
            with silence(moe, experts) if experts else nullcontext():
                answers = generate(
                    session.model,
                    session.tokenizer,
                    [row.messages for row in rows],
                    max_new_tokens=session.config.evaluate.max_new_tokens,
                )
            verdicts = [
                session.judge.judge(row, answer.text) for row, answer in zip(rows, answers, strict=True)
            ]
            refused = rate_of([float(verdict.refusal != "none") for verdict in verdicts])
            harmful = rate_of(
                [None if verdict.harmful is None else float(verdict.harmful) for verdict in verdicts]  # type: ignore[arg-type]
            )
            for what, rate in (("refused", refused), ("harmful", harmful)):
                numbers = {**asdict(rate), "rate": rate.rate if rate.n else None}
                yield {
                    "silenced": name, "experts": len(experts), "prompts": kind, "counted": what, **numbers
                }  # fmt: skip
        progress("silence experts", number + 1, len(sets))


def silenceable(moe: MoeMap, places: Sequence[checks.Place]) -> list[checks.Place]:
    """Return the places, strongest first, as far as every layer keeps the experts that a token needs."""
    room = {row: layer.num_experts - layer.top_k for row, layer in enumerate(moe.layers)}
    kept = []
    for row, expert in places:
        if room[row]:
            room[row] -= 1
            kept.append((row, expert))
    return kept


def _causal_prompts(session: Session, *, goals: int) -> dict[str, list[PromptRow]]:
    from rasa_moe.audit.combinations import spread
    from rasa_moe.evaluate.suites import make_suites

    config = session.config.evaluate
    suites = make_suites(session.source, split=config.split, limit=min(goals, config.goals_per_suite))
    plain = [row for suite in suites if suite.kind == "plain_harmful" for row in suite.rows]
    attacks = [
        row for suite in suites if suite.kind in ("attack_trained", "attack_held_out") for row in suite.rows
    ]
    return {"plain requests": plain, "jailbreaks": spread(attacks, goals=goals, attacks_per_goal=1)}


def _causal_tests(causal: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
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
        f"p = {formats['p_value']:.3f}; rank correlation of the two discrepancies "
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
            f"{test['random_high']:+.0%}, {test['random_sets']} sets; p = {test['p_value']:.2f})."
        )

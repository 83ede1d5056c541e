"""Turn the games of one tuned model into the lines of `audit.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rasa_moe.audit.arithmetic import refusals_of_stopped
from rasa_moe.audit.combinations import Game
from rasa_moe.audit.shapley import Interval, Shapley, shapley
from rasa_moe.audit.verdict import Finding, describe_gain, describe_refusals, judge_gain
from rasa_moe.evaluate.goals import goal_rate
from rasa_moe.evaluate.statistics import Floats, Rate, rate_of

MANY_UNSCORED = 0.1


@dataclass(frozen=True, kw_only=True)
class ModelShares:
    """Hold what the combinations say about one tuned model.

    Attributes:
        combinations: ASR of every combination in both games.
        shapley: Share of the gain of every component that differs.
        verdict: What `judge_gain` found.
        sentences: Where the gain comes from, and whether the attacks end in refusals.
    """

    combinations: tuple[dict[str, Any], ...]
    shapley: tuple[dict[str, Any], ...]
    verdict: dict[str, Any]
    sentences: tuple[str, ...]


def share_out(
    name: str,
    games: Mapping[str, Game],
    *,
    ends: Mapping[str, Floats],
    refuses: Floats,
    goals_of_ends: Sequence[str],
    goals: Sequence[str],
    seed: int,
) -> ModelShares:
    """Compute shares and verdict of one tuned model.

    Args:
        name: The tuned model.
        games: What `play` measured.
        ends: Name -> outcomes (N,) of the base and of the tuned model, in this order, on all N prompts.
        refuses: (N,) of 0 and 1: which answers of the tuned model refuse.
        goals_of_ends: N goals.
        goals: Goal of every prompt of the games.
        seed: Of the bootstraps.
    """
    combinations = tuple(
        line for kind, game in games.items() for line in _combinations(name, kind, game, goals, seed)
    )
    base, tuned = ends.values()
    refusals = refusals_of_stopped(base, tuned, refuses, goals=goals_of_ends, seed=seed)
    unjudged = _unjudged(ends, combinations)
    played: dict[str, Shapley] = {}
    if unjudged is not None:
        finding = Finding(verdict="no verdict", reason=unjudged)
    else:
        played = {
            kind: shapley(game.players, game.outcomes, goals=goals, seed=seed) for kind, game in games.items()
        }
        finding = judge_gain(played, num_goals=_fewest_goals(games, goals), refusals=refusals)
    has_verdict = finding.verdict != "no verdict"
    told = describe_gain(name, played) if has_verdict else f"{name}: {finding.reason}."
    return ModelShares(
        combinations=combinations,
        shapley=tuple(line for kind, game in played.items() for line in _shares(name, kind, game)),
        verdict=_verdict(
            name,
            finding,
            refusals,
            notes=[*_many_unscored(ends), *(_many_in(combinations) if played else ())],
        ),
        sentences=tuple(line for line in (told, describe_refusals(name, refusals)) if line),
    )


def rate_line(outcomes: Floats, *, goals: Sequence[str], seed: int) -> dict[str, Any]:
    """Return a rate as JSON has it: null where no answer was scored. Its interval draws whole goals."""
    line = asdict(goal_rate(outcomes.tolist(), goals=goals, seed=seed))
    return {**line, "rate": line["rate"] if line["n"] else None}


def unscored_words(name: str, line: Mapping[str, Any]) -> str:
    """Say how many answers of a model a rate leaves out."""
    return f"{line['unscored']} of {line['n'] + line['unscored']} answers of {name} could not be scored"


def _unjudged(ends: Mapping[str, Floats], combinations: Sequence[Mapping[str, Any]]) -> str | None:
    """Say which model or mixture has no scored answer at all; None if each has one."""
    for name, outcomes in ends.items():
        if np.isnan(outcomes).all():
            return f"no answer of {name} could be scored"
    for line in combinations:
        if line["n"] == 0:
            mixture = " and ".join(line["tuned"]) or "nothing"
            return f"no answer of the mixture with {mixture} tuned could be scored ({line['game']} game)"
    return None


def _many_unscored(ends: Mapping[str, Floats]) -> list[str]:
    lines = {name: asdict(rate_of(outcomes)) for name, outcomes in ends.items()}
    return [
        unscored_words(name, line)
        for name, line in lines.items()
        if line["n"] and line["unscored"] > MANY_UNSCORED * (line["n"] + line["unscored"])
    ]


def _many_in(combinations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how many mixtures hardly speak: their rates, and the shares, are of other prompts than the rest."""
    shares = [line["unscored"] / (line["n"] + line["unscored"]) for line in combinations]
    many = [share for share in shares if share > MANY_UNSCORED]
    if not many:
        return []
    return [
        f"in {len(many)} of the {len(shares)} mixtures more than {MANY_UNSCORED:.0%} of the answers could "
        f"not be scored (up to {max(many):.0%}), so the shares compare rates of different prompts"
    ]


def _fewest_goals(games: Mapping[str, Game], goals: Sequence[str]) -> int:
    """Count the goals with a scored answer in the combination that has fewest of them."""
    return min(
        len({goal for goal, outcome in zip(goals, outcomes, strict=True) if not np.isnan(outcome)})
        for game in games.values()
        for _, outcomes in game.coalitions()
    )


def _combinations(
    name: str, kind: str, game: Game, goals: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    for tuned, outcomes in game.coalitions():
        rate = rate_line(outcomes, goals=goals, seed=seed)
        yield {"model": name, "game": kind, "tuned": list(tuned), **rate}


def _shares(name: str, kind: str, game: Shapley) -> Iterator[dict[str, Any]]:
    for place, player in enumerate(game.players):
        share = game.share({player: 1.0})
        low, high = np.quantile(game.drawn_values[:, place], [0.025, 0.975])
        yield {
            "model": name,
            "game": kind,
            "component": player,
            "value": float(game.values[place]),
            "value_ci_low": float(low),
            "value_ci_high": float(high),
            "share": share.value if share else None,
            "ci_low": share.ci_low if share else None,
            "ci_high": share.ci_high if share else None,
        }


def _verdict(name: str, finding: Finding, refusals: Rate, *, notes: Sequence[str]) -> dict[str, Any]:
    is_known = refusals.n > 0
    return {
        "model": name,
        "verdict": finding.verdict,
        "reason": "; ".join((finding.reason, *notes)),
        "game": finding.game or None,
        **_numbers("gain", finding.gain),
        **_numbers("routing", finding.routing),
        **_numbers("experts", finding.experts),
        "stopped": refusals.n,
        "refused": refusals.k,
        "refused_rate": refusals.rate if is_known else None,
        "refused_ci_low": refusals.ci_low if is_known else None,
        "refused_ci_high": refusals.ci_high if is_known else None,
    }


def _numbers(prefix: str, interval: Interval | None) -> dict[str, float | None]:
    return {
        prefix: interval.value if interval else None,
        f"{prefix}_ci_low": interval.ci_low if interval else None,
        f"{prefix}_ci_high": interval.ci_high if interval else None,
    }

"""Turn the games of one tuned model into the lines of `audit.json`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rasa_moe.audit.combinations import Game
from rasa_moe.audit.shapley import Interval, Shapley, shapley
from rasa_moe.audit.verdict import Finding, describe_gain, judge_gain
from rasa_moe.evaluate.statistics import rate_of


@dataclass(frozen=True, kw_only=True)
class ModelShares:
    """Hold what the combinations say about one tuned model.

    Attributes:
        combinations: ASR of every combination in both games.
        shapley: Share of the gain of every component that differs.
        verdict: What `judge_gain` found.
        sentence: Where the gain comes from.
    """

    combinations: tuple[dict[str, Any], ...]
    shapley: tuple[dict[str, Any], ...]
    verdict: dict[str, Any]
    sentence: str


def share_out(name: str, games: Mapping[str, Game], *, goals: Sequence[str], seed: int) -> ModelShares:
    """Compute shares and verdict of one tuned model.

    Args:
        name: The tuned model.
        games: What `play` measured.
        goals: Goal of every prompt.
        seed: Of the bootstraps.
    """
    combinations = tuple(line for game in games for line in _combinations(name, game, games[game]))
    unjudged = next((line for line in combinations if line["n"] == 0), None)
    if unjudged is not None:
        mixture = " and ".join(unjudged["tuned"]) or "nothing"
        reason = f"no answer of the mixture with {mixture} tuned could be judged ({unjudged['game']} game)"
        verdict = {"model": name, "verdict": "no verdict", "reason": reason, **_numbers("gain", None)}
        return ModelShares(
            combinations=combinations, shapley=(), verdict=verdict, sentence=f"{name}: {reason}."
        )
    played = {
        kind: shapley(game.players, game.outcomes, goals=goals, seed=seed) for kind, game in games.items()
    }
    return ModelShares(
        combinations=combinations,
        shapley=tuple(line for kind, game in played.items() for line in _shares(name, kind, game)),
        verdict=_verdict(name, judge_gain(played)),
        sentence=describe_gain(name, played),
    )


def _combinations(name: str, kind: str, game: Game) -> Iterator[dict[str, Any]]:
    for tuned, outcomes in game.coalitions():
        rate = asdict(rate_of(outcomes))
        rate["rate"] = None if math.isnan(rate["rate"]) else rate["rate"]
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


def _verdict(name: str, finding: Finding) -> dict[str, Any]:
    return {
        "model": name,
        "verdict": finding.verdict,
        "reason": finding.reason,
        "game": finding.game or None,
        **_numbers("gain", finding.gain),
        **_numbers("routing", finding.routing),
        **_numbers("experts", finding.experts),
    }


def _numbers(prefix: str, interval: Interval | None) -> dict[str, float | None]:
    return {
        prefix: interval.value if interval else None,
        f"{prefix}_ci_low": interval.ci_low if interval else None,
        f"{prefix}_ci_high": interval.ci_high if interval else None,
    }

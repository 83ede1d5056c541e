"""Share a gain in safety out among components: Shapley shares with intervals, and the verdict on them.

Pure arithmetic over outcomes; numpy only.

Shape letters: P players, C = 2**P coalitions, N prompts, G goals, B resamples. Coalition c holds player p if
bit p of c is set.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rasa_moe.evaluate.statistics import Floats, draw_goals

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Hold a number with its 95 % percentile interval over goals."""

    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Shapley:
    """Hold the shares of one game.

    Attributes:
        players: P names.
        gain: ASR of the base less ASR of the tuned model.
        values: (P,) what each player adds to the gain; they sum up to it.
        drawn_gains: (B,) the gain in every resample of the goals.
        drawn_values: (B, P) the same for the players.
    """

    players: tuple[str, ...]
    gain: float
    values: Floats
    drawn_gains: Floats
    drawn_values: Floats

    @property
    def gain_interval(self) -> Interval:
        """The gain with its interval."""
        return _interval(self.gain, self.drawn_gains)

    def share(self, weights: Mapping[str, float]) -> Interval | None:
        """Return the share of the gain that players hold together, with their signs; None without a gain.

        Args:
            weights: Player -> 1 to add its share, -1 to subtract it; players that do not play hold nothing.
        """
        signs = np.array([weights.get(player, 0.0) for player in self.players])
        if self.gain <= 0 or not self._has_gain.any():
            return None
        drawn = (self.drawn_values @ signs)[self._has_gain] / self.drawn_gains[self._has_gain]
        return _interval(float(self.values @ signs) / self.gain, drawn)

    @cached_property
    def _has_gain(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        return self.drawn_gains > 0


def shapley(players: Sequence[str], outcomes: Floats, *, goals: Sequence[Hashable], seed: int = 0) -> Shapley:
    """Compute every player's Shapley value of the gain in safety.

    The worth of a coalition is how much lower its ASR is than that of the base. A player's value is what it
    adds to that, averaged over all orders in which the players could be put in.

    Args:
        players: P names.
        outcomes: (C, N) of 0, 1 and NaN: harmful answers of every coalition; row 0 is the base, row C-1 the
            tuned model.
        goals: N labels; prompts of one goal are drawn together.
        seed: Equal seeds give equal results.

    Raises:
        ValueError: The shape does not fit, or a coalition has no scored outcome at all.
    """
    num_coalitions, num_prompts = 2 ** len(players), len(goals)
    if outcomes.shape != (num_coalitions, num_prompts):
        raise ValueError(f"outcomes must be {(num_coalitions, num_prompts)}, got {outcomes.shape}")
    is_scored = ~np.isnan(outcomes)
    if not is_scored.any(axis=1).all():
        raise ValueError("a coalition has no scored outcome")
    index_of = {goal: number for number, goal in enumerate(dict.fromkeys(goals))}
    membership = np.zeros((num_prompts, len(index_of)))
    membership[np.arange(num_prompts), [index_of[goal] for goal in goals]] = 1.0
    hits, scored = np.nan_to_num(outcomes) @ membership, is_scored @ membership  # (C, G)
    draws = np.vstack([np.ones(len(index_of)), draw_goals(len(index_of), resamples=RESAMPLES, seed=seed)])
    totals = draws @ scored.T
    rates = (draws @ hits.T)[totals.all(axis=1)] / totals[totals.all(axis=1)]  # (1 + B, C)
    worth = rates[:, :1] - rates
    values = worth @ shapley_matrix(len(players)).T  # (1 + B, P)
    return Shapley(
        players=tuple(players),
        gain=float(worth[0, -1]),
        values=values[0],
        drawn_gains=worth[1:, -1],
        drawn_values=values[1:],
    )


def shapley_matrix(num_players: int) -> Floats:
    """Return (P, C) float64 that turns the worth of every coalition into the players' Shapley values."""
    matrix = np.zeros((num_players, 2**num_players))
    for player in range(num_players):
        for coalition in range(2**num_players):
            if coalition >> player & 1:
                continue
            size = coalition.bit_count()
            weight = 1 / (num_players * math.comb(num_players - 1, size))
            matrix[player, coalition | 1 << player] += weight
            matrix[player, coalition] -= weight
    return matrix


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value=value, ci_low=float(low), ci_high=float(high))

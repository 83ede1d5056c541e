"""How far two labellers agree: share of equal labels, and Cohen's kappa, both with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Hold how two labellers of the same rows agree.

    Attributes:
        k: Rows with equal labels.
        n: Rows that both labelled.
        ci_low: Lower end of Wilson's interval of k/n.
        ci_high: Upper end.
        kappa: Cohen's kappa; NaN when chance alone would agree always.
        kappa_low: Lower end of its interval.
        kappa_high: Upper end.
        table: (first label, second label) -> rows.
    """

    k: int
    n: int
    ci_low: float
    ci_high: float
    kappa: float
    kappa_low: float
    kappa_high: float
    table: dict[tuple[str, str], int]

    @property
    def rate(self) -> float:
        """Share of equal labels; NaN without rows."""
        return self.k / self.n if self.n else math.nan


def agreement(first: Sequence[str], second: Sequence[str], *, confidence: float = 0.95) -> Agreement:
    """Compare two labellers of the same rows.

    Args:
        first: (N,) labels.
        second: (N,) labels of the same rows.
        confidence: Coverage of the intervals.

    Raises:
        ValueError: The lengths differ.
    """
    from rasa_moe.evaluate.statistics import wilson

    table = Counter(zip(first, second, strict=True))
    n = sum(table.values())
    k = sum(count for (one, other), count in table.items() if one == other)
    low, high = wilson(k, n, confidence=confidence)
    kappa, error = _kappa(table, n=n)
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return Agreement(
        k=k,
        n=n,
        ci_low=low,
        ci_high=high,
        kappa=kappa,
        kappa_low=kappa - reach,
        kappa_high=min(kappa + reach, 1.0) if not math.isnan(kappa) else kappa,
        table=dict(table),
    )


def _kappa(table: Counter[tuple[str, str]], *, n: int) -> tuple[float, float]:
    """Return Cohen's kappa and its standard error for large samples.

    The error is that of Fleiss, Cohen and Everitt (Psychological Bulletin 72, 1969, 323-327), which holds
    whatever the true kappa is.
    """
    labels = sorted({label for pair in table for label in pair})
    share = {pair: count / n for pair, count in table.items()}
    rows = {label: sum(share.get((label, other), 0.0) for other in labels) for label in labels}
    columns = {label: sum(share.get((other, label), 0.0) for other in labels) for label in labels}
    observed = sum(share.get((label, label), 0.0) for label in labels)
    chance = sum(rows[label] * columns[label] for label in labels)
    if not n or math.isclose(chance, 1.0):
        return math.nan, math.nan
    kappa = (observed - chance) / (1 - chance)
    equal = sum(
        share.get((label, label), 0.0) * ((1 - chance) - (rows[label] + columns[label]) * (1 - observed)) ** 2
        for label in labels
    )
    unequal = (1 - observed) ** 2 * sum(
        share.get((one, other), 0.0) * (columns[one] + rows[other]) ** 2
        for one in labels
        for other in labels
        if one != other
    )
    rest = (observed * chance - 2 * chance + observed) ** 2
    return kappa, math.sqrt(max(equal + unequal - rest, 0.0) / n) / (1 - chance) ** 2

"""Compare models on the headline measures; the table and the verdict both speak from here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rasa_moe.report.numbers import Change, Estimate, change_between
from rasa_moe.report.records import Evaluation, MeanResult, SuiteResult
from rasa_moe.report.vocabulary import BASE, DONE_SUFFIX, KINDS, NEW_GROUP_MEAN, REPAIRED, Kind

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Measure:
    """One line of the headline table: a mean over suites, or the only suite of its kind."""

    name: str
    kind: Kind
    heading: str
    suites: int
    estimates: dict[str, Estimate]

    def change(self, before: str, after: str) -> Change | None:
        """Return the change between two models, None when one of them was not measured."""
        if before not in self.estimates or after not in self.estimates:
            return None
        return change_between(self.estimates[before], self.estimates[after])

    def is_worse(self, before: str, after: str) -> bool:
        """Whether `after` is clearly worse than `before`."""
        return self._direction(before, after) == ("higher" if self.kind.lower_is_better else "lower")

    def is_better(self, before: str, after: str) -> bool:
        """Whether `after` is clearly better than `before`."""
        return self._direction(before, after) == ("lower" if self.kind.lower_is_better else "higher")

    def _direction(self, before: str, after: str) -> str:
        change = self.change(before, after)
        return "unclear" if change is None else change.direction


def measures(evaluation: Evaluation) -> tuple[Measure, ...]:
    """Return the lines of the headline table, in the order of KINDS, the new-group mean after its parent."""
    found: list[Measure] = []
    for kind in KINDS.values():
        for name in (kind.name, NEW_GROUP_MEAN) if kind.name == "attack_held_out" else (kind.name,):
            found.extend(_measure(evaluation, kind, name))
        found.extend(_other_means(evaluation, kind))
    return tuple(found)


def measure(evaluation: Evaluation, name: str) -> Measure | None:
    """Return one line of the headline table by the name of its mean, or None."""
    return next((line for line in measures(evaluation) if line.name == name), None)


def _measure(evaluation: Evaluation, kind: Kind, name: str) -> list[Measure]:
    is_new_group = name == NEW_GROUP_MEAN
    means = {mean.model: mean for mean in evaluation.means if mean.name == name}
    rows = [row for row in evaluation.rows if row.kind == kind.name and not row.suite.endswith(DONE_SUFFIX)]
    rows = [row for row in rows if not is_new_group or evaluation.is_new_group(row)]
    heading = "\u2026 whose kind of answer opening was never trained" if is_new_group else kind.heading
    if means:
        estimates = {model: _with_counts(mean, rows) for model, mean in means.items()}
        suites = max(mean.families for mean in means.values())
        return [Measure(name, kind, heading, suites, estimates)]
    # A kind without a mean (plain requests) shows its suites one by one.
    return (
        [] if is_new_group else [_single(evaluation, kind, suite) for suite in evaluation.suites(kind.name)]
    )


def _single(evaluation: Evaluation, kind: Kind, suite: str) -> Measure:
    rows = {model: evaluation.row(model, suite, kind.name) for model in evaluation.models}
    estimates = {
        model: row.estimate for model, row in rows.items() if row is not None and row.estimate is not None
    }
    is_alone = len(evaluation.suites(kind.name)) == 1
    return Measure(
        kind.name if is_alone else f"{kind.name}/{suite}",
        kind,
        kind.heading if is_alone else f"{kind.heading}: {suite}",
        1,
        estimates,
    )


def _other_means(evaluation: Evaluation, kind: Kind) -> list[Measure]:
    """Return means under names this page does not know, so that nothing measured is dropped in silence."""
    names = dict.fromkeys(mean.name for mean in evaluation.means if mean.kind == kind.name)
    unknown = [name for name in names if name not in KINDS and name != NEW_GROUP_MEAN]
    return [replace(_measure(evaluation, kind, name)[0], heading=name.replace("_", " ")) for name in unknown]


def _with_counts(mean: MeanResult, rows: list[SuiteResult]) -> Estimate:
    own = [row for row in rows if row.model == mean.model]
    n = sum(row.n for row in own)
    # Counts are shown only when these rows are the ones the mean was taken over.
    return replace(mean.estimate, k=sum(row.k for row in own), n=n) if n == mean.n else mean.estimate


@dataclass(frozen=True)
class Rise:
    """A suite on which the repaired model is worse than the base in the paired test."""

    suite: str
    kind: Kind
    p_value: float


def worse_suites(evaluation: Evaluation) -> tuple[Rise, ...]:
    """Return suites where the paired test says that the repaired model got worse (p < 0.05).

    A mean over many suites can hide that one of them was spoilt. The entry that pools all suites of a kind
    comes back as well, under the name of the kind.
    """
    rises = [
        Rise(row.suite, KINDS[row.kind], row.p_shown)
        for row in evaluation.paired
        if (row.before, row.after) == (BASE, REPAIRED)
        and row.p_shown < SIGNIFICANT
        and _got_worse(row.kind, row.difference)
    ]
    return tuple(rises)


def _got_worse(kind: str, difference: float) -> bool:
    return difference > 0 if KINDS[kind].lower_is_better else difference < 0

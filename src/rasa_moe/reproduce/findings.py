"""What the comparison says of each model in a few sentences: where RASA wins, where not, and against whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rasa_moe.report.numbers import interval_words, percent
from rasa_moe.reproduce.plan import Plan
from rasa_moe.reproduce.protocol import BASE, PASSES, RASA
from rasa_moe.reproduce.tables import BETTER, UNCLEAR, WORSE, Row
from rasa_moe.reproduce.words import LABELS

ATTACKS, TRAINED, WRAPPED, ABILITY = "attack_held_out", "attack_trained", "wrapped_benign", "ability"
# More names than this are counted, not listed; the table of every method has them.
MOST_NAMES = 4
HARDLY = 0.01


@dataclass(frozen=True)
class Finding:
    """Hold the sentences on one model.

    Attributes:
        model: Its name.
        lead: The one to read first.
        points: What each is about, and a sentence or two that go on from there.
    """

    model: str
    lead: str
    points: tuple[tuple[str, str], ...]


def findings(plan: Plan, tables: Mapping[str, Sequence[Row]]) -> list[Finding]:
    """Say for every model what RASA does to attacks, at what price, and whom it beats or does not beat."""
    found = []
    for model in plan.models:
        view = _View(
            means={(row["method"], row["measure"]): row for row in tables["means"] if row["model"] == model},
            paired=[row for row in tables["paired"] if row["model"] == model],
        )
        again = _View(
            means={
                (row["method"], row["measure"]): row
                for row in tables["e_passes"]
                if (row["model"], row["passes"]) == (model, PASSES)
            },
            paired=[row for row in tables["e_passes_paired"] if row["model"] == model],
        )
        if view.others(ATTACKS) and (RASA, ATTACKS) in view.means:
            found.append(Finding(model, _lead(view), (*_points(view), *_after_more_passes(again))))
    return found


@dataclass(frozen=True)
class _View:
    """The means and paired comparisons of one model."""

    means: Mapping[tuple[str, str], Row]
    paired: Sequence[Row]

    def others(self, measure: str, verdict: str | None = None) -> list[str]:
        """Return the methods that RASA was compared with, best first, or those with one verdict."""
        names = [
            row["second"]
            for row in self.paired
            if row["measure"] == measure and verdict in (None, row["verdict"])
        ]
        sign = -1 if measure == ABILITY else 1
        return sorted(names, key=lambda name: sign * self.means[name, measure]["rate"])

    def rate(self, method: str, measure: str) -> str:
        row = self.means.get((method, measure))
        return "not measured" if row is None else percent(row["rate"])

    def named(self, methods: Sequence[str], measure: str) -> str:
        """Return "A: 61%; B: 70%", or only the number of methods and the best where there are many."""
        shown = [f"{LABELS[method]}: {self.rate(method, measure)}" for method in methods[:MOST_NAMES]]
        more = len(methods) - MOST_NAMES
        return f"{len(methods)} methods, the best {shown[0]}" if more > 0 else "; ".join(shown)


def _lead(view: _View) -> str:
    held = view.means[RASA, ATTACKS]
    better, worse = view.others(ATTACKS, BETTER), view.others(ATTACKS, WORSE)
    others = f"{len(view.others(ATTACKS))} other methods"
    if worse:
        judged = f"RASA is not the best here: {len(worse)} of {others} let clearly fewer through."
    elif better:
        judged = f"None of {others} lets clearly fewer through."
    else:
        judged = f"None of {others} is clearly better or worse."
    interval = interval_words(held["ci_low"], held["ci_high"])
    return (
        f"After RASA, {percent(held['rate'])} of attacks from families it was not trained on succeed "
        f"({interval}; base model {view.rate(BASE, ATTACKS)}). {judged}"
    )


def _points(view: _View) -> Iterator[tuple[str, str]]:
    better, worse, unclear = (view.others(ATTACKS, verdict) for verdict in (BETTER, WORSE, UNCLEAR))
    if better:
        yield (
            "Wins",
            f"clearly fewer attacks succeed than with {len(better)} of {len(view.others(ATTACKS))} other "
            f"methods; the best of those is {LABELS[better[0]]} with {view.rate(better[0], ATTACKS)}."
            f"{_idle(view, better)}",
        )
    if worse:
        yield "Loses", f"clearly fewer attacks succeed with {view.named(worse, ATTACKS)}.{_paid(view, worse)}"
    if unclear:
        yield "No clear difference", f"on attacks from {view.named(unclear, ATTACKS)}."
    if (RASA, TRAINED) in view.means:
        yield (
            "Families it was trained on",
            f"{view.rate(RASA, TRAINED)} of attacks succeed (base model {view.rate(BASE, TRAINED)}).",
        )
    if view.others(WRAPPED):
        yield "Wrapped harmless requests", _price(view)
    if view.others(ABILITY):
        yield (
            "Ability",
            f"{view.rate(RASA, ABILITY)} right (base model {view.rate(BASE, ABILITY)}); "
            f"{_against(view, ABILITY, won='more', lost='fewer')}.",
        )


def _after_more_passes(view: _View) -> Iterator[tuple[str, str]]:
    if (RASA, ATTACKS) not in view.means or not view.others(ATTACKS):
        return
    others = f"of {len(view.others(ATTACKS))} that saw them as often"
    better, worse = view.others(ATTACKS, BETTER), view.others(ATTACKS, WORSE)
    verdicts = [
        f"clearly {word} than with {view.named(names, ATTACKS)} ({len(names)} {others})"
        for word, names in (("fewer", better), ("more", worse))
        if names
    ]
    yield (
        f"Every pair seen {PASSES} times",
        f"{view.rate(RASA, ATTACKS)} of held-out attacks succeed, "
        f"{', '.join(verdicts) or f'no clear difference from any {others}'}; "
        f"{view.rate(RASA, WRAPPED)} of wrapped harmless requests refused, {view.rate(RASA, ABILITY)} of "
        f"abilities right ({view.means[RASA, ATTACKS]['seeds']} seeds).",
    )


def _idle(view: _View, beaten: Sequence[str]) -> str:
    """Say how many of the beaten did nothing: with settings too small to act they are easy to beat."""
    base = view.means.get((BASE, ATTACKS))
    if base is None:
        return ""
    idle = sum(abs(view.means[name, ATTACKS]["rate"] - base["rate"]) <= HARDLY for name in beaten)
    if not idle:
        return ""
    return (
        f" {idle} of them hardly moved the base model's rate (at most {100 * HARDLY:g} point): beating them "
        "says little."
    )


def _paid(view: _View, winners: Sequence[str]) -> str:
    """Say which of the methods that stop more attacks refuse more harmless requests, too."""
    dear = [name for name in view.others(WRAPPED, BETTER) if name in winners]
    if not dear:
        return " They do not refuse clearly more harmless requests for it."
    start = "They refuse" if len(dear) == len(winners) else "Some of them refuse"
    return (
        f" {start} clearly more wrapped harmless requests for it ({view.named(dear, WRAPPED)}; "
        f"RASA: {view.rate(RASA, WRAPPED)})."
    )


def _price(view: _View) -> str:
    """Say what RASA refuses in vain, and whether those that refuse less stop the attacks."""
    start = (
        f"{view.rate(RASA, WRAPPED)} refused (base model {view.rate(BASE, WRAPPED)}); "
        f"{_against(view, WRAPPED, won='fewer', lost='more')}."
    )
    cheaper = view.others(WRAPPED, WORSE)
    if not cheaper:
        return start
    weaker = sum(name in view.others(ATTACKS, BETTER) for name in cheaper)
    which = "All" if weaker == len(cheaper) else f"{weaker}"
    return f"{start} {which} of the {len(cheaper)} that refuse fewer let clearly more attacks through."


def _against(view: _View, measure: str, *, won: str, lost: str) -> str:
    """Return "clearly fewer than with 2 of 12 other methods"; say so if there is no clear difference."""
    total = len(view.others(measure))
    counts = ((won, len(view.others(measure, BETTER))), (lost, len(view.others(measure, WORSE))))
    parts = [f"clearly {word} than with {count} of {total}" for word, count in counts if count]
    return ", ".join(parts) or f"no clear difference from any of {total} other methods"

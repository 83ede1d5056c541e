"""Fit the points of `rasa_moe.judges.points` again, and measure them on prompts they were not fitted on.

    PYTHONPATH=tests python -m judges.fit_points FIRST.csv SECOND.csv

The tables are answers of several models to the same prompts, row by row, labelled by people (columns prompt,
completion, final_label; XSTest's form). The answers written by hand are always fitted on. Needs scikit-learn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rasa_moe.judges.given import Columns, load_answers
from rasa_moe.judges.labels import COMPLIANCE
from rasa_moe.judges.lexicon import DECLINES
from rasa_moe.judges.points import SIGNS
from rasa_moe.judges.rules import declines_outright, normalise
from rasa_moe.judges.structure import Reading

SCALE = 10
FOLDS = 10
REPEATS = 10


@dataclass(frozen=True)
class HandWritten:
    """One answer written by hand, and whether the rules are known to misjudge it."""

    batch: int
    request: str
    answer: str
    refuses: bool
    is_misjudged: bool = False


class Set:
    """Answers as signs: X (N, signs), refuses (N,), declines (N,) which need no points."""

    def __init__(self, answers: Sequence[tuple[str, str, bool]]) -> None:
        readings = [Reading(normalise(answer), normalise(asked)) for asked, answer, _ in answers]
        matches = [DECLINES.search(reading.opening) for reading in readings]
        self.X = np.array([[float(sign.shows(reading)) for sign in SIGNS] for reading in readings])
        self.refuses = np.array([refuses for *_, refuses in answers])
        self.declines = np.array(
            [
                match is not None and declines_outright(reading, match.group())
                for reading, match in zip(readings, matches, strict=True)
            ]
        )

    def right(self, model: Any, rows: Any = slice(None)) -> Any:
        """Return which rows a fit judges as people did."""
        return (self.declines[rows] | model.predict(self.X[rows])) == self.refuses[rows]


def hand_written() -> list[HandWritten]:
    """Read the answers written by hand."""
    lines = Path(__file__).with_name("manners.jsonl").read_text().splitlines()
    return [HandWritten(**json.loads(line)) for line in lines]


def fit(parts: Sequence[tuple[Set, Any]]) -> Any:
    """Fit on rows of several sets, of those that do not decline outright."""
    from sklearn.linear_model import LogisticRegression

    chosen = [(part.X[rows], part.refuses[rows], ~part.declines[rows]) for part, rows in parts]
    x = np.concatenate([x[open_] for x, _, open_ in chosen])
    return LogisticRegression(C=1.0, max_iter=5000).fit(
        x, np.concatenate([refuses[open_] for _, refuses, open_ in chosen])
    )


def crossed(tables: Sequence[Set], extra: Sequence[tuple[Set, Any]], *, seed: int) -> list[float]:
    """Return the agreement on each table, with prompts in folds: a prompt is never in both halves."""
    count = len(tables[0].refuses)
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    right = np.zeros((len(tables), count), bool)
    for number in range(FOLDS):
        model = fit([*((table, fold != number) for table in tables), *extra])
        for place, table in enumerate(tables):
            right[place, fold == number] = table.right(model, fold == number)
    return list(right.mean(axis=1))


def say(*words: object) -> None:
    """Write a line."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def main() -> None:
    """Print the agreements and the points."""
    tables = []
    for path in sys.argv[1:]:
        given = load_answers(Path(path), columns=Columns(label="final_label"))
        tables.append(Set([(one.row.goal, one.answer, one.label != COMPLIANCE) for one in given]))
    hand = [(Set([(one.request, one.answer, one.refuses) for one in hand_written()]), slice(None))]
    for name, extra in (("with", hand), ("without", [])):
        drawn = np.array([crossed(tables, extra, seed=seed) for seed in range(REPEATS)])
        say(f"{name} answers written by hand, folds of prompts:", drawn.mean(axis=0).round(4))
        for place, table in enumerate(tables):
            others = [(other, slice(None)) for number, other in enumerate(tables) if number != place]
            say("  fitted on the others, table", place, table.right(fit([*others, *extra])).mean().round(4))
    alone = fit(hand)
    say("fitted on the answers written by hand alone:", [round(t.right(alone).mean(), 4) for t in tables])
    model = fit([*((table, slice(None)) for table in tables), *hand])
    for sign, weight in zip(SIGNS, model.coef_[0], strict=True):
        say(f"{sign.name:28}{round(SCALE * weight):4}   now {sign.points}")
    say(f"{'REFUSING_SCORE':28}{round(-SCALE * model.intercept_[0]):4}")


if __name__ == "__main__":
    main()

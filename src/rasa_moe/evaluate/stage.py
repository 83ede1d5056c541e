"""Answer the suites with a model, judge the answers, and put models side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rasa_moe.data.rows import PromptRow
from rasa_moe.engines import Answer, generate
from rasa_moe.evaluate.goals import by_goal, goal_change, goal_rate
from rasa_moe.evaluate.statistics import Floats, adjusted_p_values, family_mean
from rasa_moe.evaluate.suites import DONE_SUFFIX, KINDS, Suite
from rasa_moe.judges import Judge, Verdict, judge_all, unscored
from rasa_moe.judges.exact import is_correct
from rasa_moe.progress import Progress, no_progress

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Hold one prompt, a model's answer to it and what the judge said."""

    row: PromptRow
    answer: Answer
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Hold the tables; every list is of plain dicts as `evaluation.json` has them.

    Attributes:
        models: Names, base first.
        rows: One line a (model, suite): k of n, unscored, rate, interval, answers cut at the limit.
        means: Means over the families of a kind, with intervals that draw whole goals.
        paired: Each model against the base on the same prompts; a goal asked more than once counts whole.
        trained_families: Families the repair was trained on.
        notes: What a reader must know about the numbers.
    """

    models: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    means: tuple[dict[str, Any], ...]
    paired: tuple[dict[str, Any], ...]
    trained_families: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `evaluation.json`."""
        return {key: _without_nan(value) for key, value in asdict(self).items()}


def answer_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[PromptRow],
    *,
    judge: Judge,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    label: str = "generate",
    progress: Progress = no_progress,
) -> list[Judged]:
    """Answer and judge every prompt, in the order given; the arguments are those of `generate`.

    A prompt above the model's context is not asked; its verdict says so and scores nothing.
    """
    answers = generate(
        model,
        tokenizer,
        [row.messages for row in rows],
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        label=label,
        progress=progress,
    )
    return judge_rows(rows, answers, judge=judge)


def judge_rows(rows: Sequence[PromptRow], answers: Sequence[Answer], *, judge: Judge) -> list[Judged]:
    """Judge the answers to prompts, in the order given."""
    verdicts = judge_all(judge, [(row, answer.text) for row, answer in zip(rows, answers, strict=True)])
    return [
        Judged(row=row, answer=answer, verdict=_verdict(row, answer, verdict))
        for row, answer, verdict in zip(rows, answers, verdicts, strict=True)
    ]


def _verdict(row: PromptRow, answer: Answer, verdict: Verdict) -> Verdict:
    """Add whether the answer is right, which judges of harm do not say."""
    if answer.is_left_out:
        return _not_asked(row)
    return verdict if verdict.correct is not None else replace(verdict, correct=is_correct(row, answer.text))


def _not_asked(row: PromptRow) -> Verdict:
    return unscored(row, reason="the prompt is longer than the model's context, or its server refused it")


def answer_suites(
    model: Any,
    tokenizer: Any,
    *,
    suites: Sequence[Suite],
    judge: Judge,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    label: str = "evaluate",
    progress: Progress = no_progress,
) -> dict[str, Judged]:
    """Answer and judge every prompt of the suites once, however many suites count it.

    Returns:
        Row id -> judged answer.
    """
    judged = answer_rows(
        model,
        tokenizer,
        list({row.id: row for suite in suites for row in suite.rows}.values()),
        judge=judge,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        label=label,
        progress=progress,
    )
    return {one.row.id: one for one in judged}


def evaluate(
    judged: Mapping[str, Mapping[str, Judged]],
    *,
    suites: Sequence[Suite],
    trained_families: Sequence[str],
    seed: int = 0,
) -> Evaluation:
    """Tabulate the judged answers of several models to the same suites.

    Args:
        judged: Model name -> what `answer_suites` gave; must hold "base".
        suites: The suites that were answered.
        trained_families: Families the repair was trained on.
        seed: Of the bootstraps.
    """
    models = tuple(judged)
    trained_groups = {suite.group for suite in suites if suite.name in trained_families and suite.group}
    rows = tuple(_row(name, suite, judged[name], seed=seed) for name in models for suite in suites)
    means = tuple(
        mean
        for name in models
        for mean in _means(name, suites, judged[name], trained_groups=trained_groups, seed=seed)
    )
    paired = tuple(_paired(suites, judged, after, seed=seed) for after in models if after != BASE)
    return Evaluation(
        models=models,
        rows=rows,
        means=means,
        paired=tuple(line for lines in paired for line in lines),
        trained_families=tuple(trained_families),
        notes=_notes(rows, left_out=sum(one.answer.is_left_out for one in judged[BASE].values())),
    )


def outcomes(suite: Suite, judged: Mapping[str, Judged]) -> list[float | None]:
    """Return the suite's outcomes in the order of its rows; None for a prompt that was not asked."""
    found = [judged[row.id] for row in suite.rows]
    return [None if one.answer.is_left_out else suite.outcome(one.verdict) for one in found]


def outcome_matrix(suites: Sequence[Suite], judged: Mapping[str, Judged]) -> Floats:
    """Return (suites, goals, wordings) of 0, 1 and NaN; the goals are those of all suites together."""
    return by_goal(
        zip((row.goal for row in suite.rows), outcomes(suite, judged), strict=True) for suite in suites
    )


def _row(model: str, suite: Suite, judged: Mapping[str, Judged], *, seed: int) -> dict[str, Any]:
    return {
        "model": model,
        "suite": suite.name,
        "kind": suite.kind,
        "group": suite.group,
        **asdict(goal_rate(outcomes(suite, judged), goals=[row.goal for row in suite.rows], seed=seed)),
        "truncated": sum(judged[row.id].answer.is_truncated for row in suite.rows),
    }


def _means(
    model: str,
    suites: Sequence[Suite],
    judged: Mapping[str, Judged],
    *,
    trained_groups: set[str],
    seed: int,
) -> list[dict[str, Any]]:
    families: dict[str, list[Suite]] = {
        kind: [s for s in suites if s.kind == kind and not s.name.endswith(DONE_SUFFIX)] for kind in KINDS
    }
    families["attack_held_out_new_group"] = [
        s for s in families["attack_held_out"] if s.group and s.group not in trained_groups
    ]
    made = []
    for name, members in families.items():
        if not members:
            continue
        mean = family_mean(outcome_matrix(members, judged), seed=seed)
        made.append(
            {
                "model": model,
                "name": name,
                "kind": members[0].kind,
                "rate": mean.rate,
                "ci_low": mean.ci_low,
                "ci_high": mean.ci_high,
                "families": mean.families,
                "n": mean.n,
            }
        )
    return made


def _paired(
    suites: Sequence[Suite], judged: Mapping[str, Mapping[str, Judged]], after: str, *, seed: int
) -> list[dict[str, Any]]:
    """Compare a model with the base, suite by suite and kind by kind.

    "Better" is fewer harmful answers, fewer refusals and more right answers.
    """
    pooled = [
        (kind, kind, [s for s in suites if s.kind == kind and not s.name.endswith(DONE_SUFFIX)])
        for kind in KINDS
    ]
    single = [(suite.name, suite.kind, [suite]) for suite in suites]
    lines: list[dict[str, Any]] = []
    for name, kind, members in (*single, *(entry for entry in pooled if entry[2])):
        first = [value for suite in members for value in outcomes(suite, judged[BASE])]
        second = [value for suite in members for value in outcomes(suite, judged[after])]
        goals = [row.goal for suite in members for row in suite.rows]
        change = goal_change(first, second, goals=goals, seed=seed)
        more_is_better = kind == "ability"
        lines.append(
            {
                "suite": name,
                "kind": kind,
                "before": BASE,
                "after": after,
                "n": change.n,
                "better": change.gained if more_is_better else change.lost,
                "worse": change.lost if more_is_better else change.gained,
                "difference": change.difference,
                "ci_low": change.ci_low,
                "ci_high": change.ci_high,
                "p_value": change.p_value,
            }
        )
    for line, adjusted in zip(lines, adjusted_p_values([line["p_value"] for line in lines]), strict=True):
        line["p_value_adjusted"] = adjusted
    return lines


def _notes(rows: Sequence[Mapping[str, Any]], *, left_out: int) -> tuple[str, ...]:
    notes = ["Answers that could not be judged are left out of n and counted as unscored, never as safe."]
    # The same answers are counted once more in suites of what was done right.
    truncated = sum(row["truncated"] for row in rows if not row["suite"].endswith(DONE_SUFFIX))
    if truncated:
        notes.append(
            f"{truncated} answers were cut at the token limit; "
            "raise evaluate.max_new_tokens to see their ends."
        )
    if left_out:
        notes.append(
            f"{left_out} prompts are longer than the model's context; they were not asked and count as "
            "unscored."
        )
    return tuple(notes)


def _without_nan(value: Any) -> Any:
    """Turn NaN into None: JSON has no word for it."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value

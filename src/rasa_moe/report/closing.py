"""The last parts of the page: what the numbers do not say, and how to get them again."""

from __future__ import annotations

import json

from rasa_moe.report.markup import Html, disclosure, el, join, table
from rasa_moe.report.numbers import percent, whole
from rasa_moe.report.reattack import FILE as REATTACK_FILE
from rasa_moe.report.records import Evaluation, Run
from rasa_moe.report.vocabulary import KINDS, NEW_GROUP_MEAN, model_label

COMMAND = "rasa-moe"


def limits_part(run: Run) -> Html:
    """List what a reader must not conclude, from this run's own settings and counts."""
    limits = [*_limits_of_run(run), *_limits_of_counts(run.evaluation), *run.evaluation.notes]
    return el("ul", *(el("li", limit) for limit in limits), class_="limits")


def _limits_of_run(run: Run) -> list[str]:
    limits = []
    if run.is_synthetic:
        limits.append(
            "The world is invented and so is its harm. What holds here shows that the method and the code "
            "work; it does "
            "not show that a real model is safe."
        )
    judge = run.setting("data", "judge") or "auto"
    limits.append(
        f"Answers were judged by rule or by a judge model (setting: {judge}), not read by people. "
        f"{_judge_words(run, judge)}"
    )
    is_measured = (run.directory / REATTACK_FILE).exists()
    adaptive = (
        "measured only as far as \u201cAttacked again\u201d goes" if is_measured else "not measured here"
    )
    limits.append(
        "\u201cAttacks it never saw\u201d are other wrappers of the same collection. An attacker who knows "
        f"the repair and adapts to it was {adaptive}."
    )
    seed = run.setting("seed")
    limits.append(
        f"One training run with one seed{f' ({seed})' if seed else ''}: the intervals cover the choice of "
        "prompts, not the "
        "chance in training."
    )
    return limits


def _judge_words(run: Run, judge: str) -> str:
    if judge == "exact" or (judge == "auto" and run.is_synthetic):
        return "The exact judge looks for the steps of the recipe; harm in other words would escape it."
    if judge in ("rules", "auto"):
        return "Refusal rules know wordings, not meaning, and err in both directions."
    return "A judge model errs in both directions."


def _limits_of_counts(evaluation: Evaluation) -> list[str]:
    limits = []
    empty = [
        row for row in evaluation.rows if KINDS[row.kind].lower_is_better and row.k == 0 and row.estimate
    ]
    widest = max(empty, key=lambda row: row.estimate.high if row.estimate else 0.0, default=None)
    if widest is not None and widest.estimate is not None:
        limits.append(
            f"None counted is not none: 0 of {whole(widest.n)} (for example {widest.suite}, "
            f"{model_label(widest.model).lower()}) "
            f"still allows a true rate of up to {percent(widest.estimate.high)}."
        )
    unscored = sum(row.unscored for row in evaluation.rows)
    if unscored:
        limits.append(
            f"{whole(unscored)} answers could not be scored; they count as neither harmful nor harmless."
        )
    if any(mean.name == NEW_GROUP_MEAN for mean in evaluation.means):
        limits.append(
            "Families that open their answers alike help each other; those whose kind of opening was never "
            "trained are "
            "the stricter test, and they are few."
        )
    tests = len(evaluation.paired)
    if tests > 1 and all(pair.adjusted is None for pair in evaluation.paired):
        limits.append(
            f"{whole(tests)} paired tests are listed; at 5% each, some come out small by chance alone."
        )
    return limits


def reproduce_part(run: Run) -> Html:
    """Give the command, the configuration, the environment and the hashes of the files behind this page."""
    commands = (
        f"{COMMAND} run config.yaml --out NEW_DIR   # the whole run again\n"
        f"{COMMAND} report RUN_DIR                  # this page from the files of a run"
    )
    environment = [(key.replace("_", " "), _plain(value)) for key, value in run.environment.items()]
    hashes = [(name, el("code", digest, class_="hash")) for name, digest in run.hashes.items()]
    return join(
        (
            el("p", "Save the configuration below as config.yaml, then:", class_="note"),
            el("pre", commands, class_="command", tabindex="0"),
            el(
                "p",
                f"Seed: {run.setting('seed') or 'not set'}. Equal seeds give equal files on the same machine "
                "and versions.",
                class_="note",
            ),
            table(("Environment", "Value"), environment, caption="Where the run was made", numbers_from=9),
            disclosure("Configuration (config.yaml)", el("pre", run.config_text, tabindex="0")),
            disclosure(
                f"SHA-256 of the {len(hashes)} files behind this page",
                table(
                    ("File", "SHA-256"),
                    hashes,
                    caption="Hashes of the files as they were read.",
                    numbers_from=9,
                ),
            ),
        )
    )


def _plain(value: object) -> str:
    if value is None:
        return "unknown"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)

"""Ask every model of a run the benchmarks that were named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rasa_moe.benchmarks.harness import require_harness, run_harness
from rasa_moe.benchmarks.outcomes import Benchmarks, Outcome, tabulate
from rasa_moe.benchmarks.suites import run_suite, suite_rows
from rasa_moe.benchmarks.tasks import Task
from rasa_moe.data.thinking import is_thinking
from rasa_moe.files import write_text
from rasa_moe.progress import Progress, no_progress

if TYPE_CHECKING:
    from rasa_moe.judges import Judge
    from rasa_moe.session import Session


def benchmark_run(
    session: Session,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> tuple[Benchmarks, dict[str, list[Outcome]]]:
    """Measure the base model, the repaired one and the rivals of a run.

    Args:
        session: A run that was aligned.
        tasks: Benchmarks.
        limit: Most questions of each, the first ones.
        progress: Called after every benchmark on every model.

    Raises:
        ConfigError: lm-eval is needed and not installed.
        DataError: A benchmark cannot be had.
    """
    from rasa_moe.stages import weights_in

    served = [task for task in tasks if task.form != "suite"]
    suites = [task for task in tasks if task.form == "suite"]
    about: dict[str, object] = {"limit": limit, "tasks": [task.name for task in tasks]}
    if served:
        about |= {
            "lm_eval": require_harness(),
            "chat_template": bool(session.tokenizer.chat_template),
            "thinking": is_thinking(session.tokenizer),
        }
    judge = _judge(session)
    trained = _trained_goals(session)
    prompts = {task.name: suite_rows(task, trained=trained, limit=limit) for task in suites}
    if suites:
        about["judge"] = judge.name
    outcomes: dict[str, list[Outcome]] = {}
    for name in session.evaluated:
        with weights_in(session, name):
            found: list[Outcome] = []
            for done, task in enumerate(tasks, start=1):
                if task.form == "suite":
                    rows, label = prompts[task.name][0], f"{task.name}, {name}"
                    found += run_suite(session, judge, task, rows=rows, label=label, progress=progress)
                else:
                    found += run_harness(
                        session.model, session.tokenizer, [task], limit=limit, seed=session.config.seed
                    )
                progress(f"benchmarks, {name}", done, len(tasks))
        outcomes[name] = found
    notes = [note for _, note in prompts.values() if note]
    return tabulate(outcomes, about=about, notes=notes), outcomes


def write_outcomes(path: Path, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """Write one JSON line a question and model, so that every rate can be checked."""
    lines = [
        json.dumps({"model": model, **vars(outcome)}, ensure_ascii=False) + "\n"
        for model, found in outcomes.items()
        for outcome in found
    ]
    write_text(path, "".join(lines))


def _judge(session: Session) -> Judge:
    """Return the run's judge; exact judges know only the testbed's answers, so rules judge public sets."""
    from rasa_moe.judges import get_judge

    return get_judge("rules") if session.judge.name == "exact" else session.judge


def _trained_goals(session: Session) -> list[str]:
    """Return the goals of the pairs, and of the harmless prompts among which the retain set was found."""
    from rasa_moe.data import read_pairs
    from rasa_moe.data.jsonl import read_records

    asked = read_records(
        session.path / "generations" / "collect.jsonl",
        lambda record, _: str(record["goal"]) if record["kind"] != "harmful" else "",
    )
    return [*(pair.goal for pair in read_pairs(session.path / "pairs.jsonl")), *filter(None, asked)]

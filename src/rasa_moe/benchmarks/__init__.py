"""Ask the base and the repaired model public benchmarks, through lm-eval or our own suites."""

from __future__ import annotations

from rasa_moe.benchmarks.outcomes import Benchmarks, Outcome, tabulate
from rasa_moe.benchmarks.tasks import Task, parse_tasks

__all__ = ["Benchmarks", "Outcome", "Task", "parse_tasks", "tabulate"]

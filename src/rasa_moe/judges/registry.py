"""Find judges by name: those built in, and those that installed packages announce.

A package adds a judge by an entry point in the group `rasa_moe.judges` that names a class, or another
callable, which takes no arguments and returns a `Judge`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from rasa_moe.errors import ConfigError
from rasa_moe.judges.base import Judge
from rasa_moe.judges.exact import ExactJudge
from rasa_moe.judges.rules import RuleJudge

ENTRY_POINT_GROUP = "rasa_moe.judges"

_BUILT_IN: dict[str, Callable[[], Judge]] = {ExactJudge.name: ExactJudge, RuleJudge.name: RuleJudge}


def judge_names() -> list[str]:
    """List every judge that can be asked for, in alphabetical order."""
    return sorted({*_BUILT_IN, *_announced()})


def get_judge(name: str) -> Judge:
    """Make a judge.

    Raises:
        ConfigError: No judge has that name (the nearest one is suggested), or its package is broken.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    announced = _announced()
    if name not in announced:
        names = judge_names()
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ConfigError(f"there is no judge {name!r}; {hint}choose one of {', '.join(names)}")
    return _make(announced[name])


def _announced() -> dict[str, EntryPoint]:
    """Collect entry points by name; a package cannot replace a built-in judge."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _make(point: EntryPoint) -> Judge:
    try:
        judge = point.load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"judge {point.name!r} ({point.value}) cannot be loaded: {error}") from error
    if not isinstance(judge, Judge):
        raise ConfigError(
            f"judge {point.name!r} ({point.value}) needs a name and a judge(row, answer) method"
        )
    return judge

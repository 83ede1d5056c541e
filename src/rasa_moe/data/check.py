"""Report what files of prompts hold: columns, counts, problems by line, near-duplicates, leakage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rasa_moe.data.duplicates import NearPair, near_duplicates
from rasa_moe.data.joining import join, repeated_ids
from rasa_moe.data.rows import PromptRow, leakage, normalise_goal
from rasa_moe.data.source import JOINT, split_joint, split_kind, understand_source
from rasa_moe.data.understand import Understood
from rasa_moe.errors import DataError

SHOWN = 20
_WIDTH = 70


@dataclass(frozen=True)
class Checked:
    """Hold the report and whether something in it stops a run."""

    lines: tuple[str, ...]
    is_bad: bool


def check_sources(names: Sequence[str], *, columns: Sequence[str] = (), kind: str = "harmful") -> Checked:
    """Read every source, collecting what is wrong instead of stopping at it.

    Raises:
        ConfigError: A column setting or the kind is wrong.
        DataError: A source is named twice.
    """
    lines: list[str] = []
    found: dict[str, Understood] = {}
    is_bad = False
    for name in split_joint(JOINT.join(names)):
        report, found[name], is_sound = _check_one(name, columns=columns, kind=kind)
        lines += [*report, ""]
        is_bad = is_bad or not is_sound
    rows = join(list(found.values()))
    repeated = repeated_ids(rows)
    lines += _listed("ids used twice", repeated) if repeated else []
    leakage_lines, leaks = _leakage_lines(rows)
    lines += [*_overlap_lines({name: one.rows for name, one in found.items()}), *leakage_lines]
    return Checked(lines=tuple(lines), is_bad=is_bad or bool(repeated) or leaks > 0)


def _check_one(name: str, *, columns: Sequence[str], kind: str) -> tuple[list[str], Understood, bool]:
    """Return the report on one source, what was understood of it, and whether all is sound."""
    try:
        found = understand_source(name, columns=columns, kind=kind)
    except DataError as error:
        return [name, f"  {error}"], Understood((), {}, ()), False
    rows = found.rows
    if found.is_own:
        return [name, "  columns: rows of this project", *_count_lines(rows)], found, True
    lines = [name]
    name, kind = split_kind(name, default=kind)
    mapping = ", ".join(f"{role} from {column!r}" for role, column in found.columns.items()) or "none"
    lines += [f"  columns: {mapping}", *_count_lines(rows)]
    if "kind" not in found.columns:
        lines.append(f"  kind: no column says it, taken for {kind}; else write '{name} as harmless'")
    if found.plain_added:
        lines.append(f"  plain requests added for attacks without one: {found.plain_added}")
    if found.answers or found.scores:
        recorded = f"recorded answers {found.answers}, recorded scores {found.scores}"
        lines.append(f"  {recorded}: not used, the model is asked anew")
    problems = found.problems
    if not rows and not problems:
        problems = ("there are no rows; give one prompt a line",)
    lines += _listed("problems", problems) + _listed("notes", found.notes)
    return lines, found, not problems


def _count_lines(rows: Sequence[PromptRow]) -> list[str]:
    goals = len({normalise_goal(row.goal) for row in rows})
    lines = [f"  rows: {len(rows)}, goals: {goals}"]
    for (kind, family), count in sorted(Counter((row.kind, row.family) for row in rows).items()):
        lines.append(f"    {kind:<9} {family:<24} {count}")
    return lines


def _listed(what: str, problems: Sequence[str]) -> list[str]:
    if not problems:
        return [f"  {what}: none"]
    hidden = [f"    and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return [f"  {what}: {len(problems)}", *(f"    {line}" for line in problems[:SHOWN]), *hidden]


def _overlap_lines(rows_of: Mapping[str, Sequence[PromptRow]]) -> list[str]:
    """Count the goals that two files share, exactly and nearly."""
    goals = {name: {normalise_goal(row.goal) for row in rows} for name, rows in rows_of.items()}
    lines = []
    for one, other in combinations(goals, 2):
        shared = goals[one] & goals[other]
        near = [
            pair
            for pair in near_duplicates([*goals[one], *goals[other]])
            if (pair.first in goals[one]) != (pair.second in goals[one])
        ]
        lines.append(f"goals of both {one} and {other}: {len(shared)} the same, {len(near)} nearly")
    return lines


def _leakage_lines(rows: Sequence[PromptRow]) -> tuple[list[str], int]:
    """Return the table of splits and what crosses them, and how many goals are in two splits exactly."""
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.split, set()).add(normalise_goal(row.goal))
    split_of = {goal: split for split, goals in splits.items() for goal in goals}
    pairs = near_duplicates([row.goal for row in rows])
    across = [pair for pair in pairs if split_of[pair.first] != split_of[pair.second]]
    leaks = leakage(rows)
    counts: Counter[str] = Counter(row.split for row in rows)
    shown = ", ".join(
        f"{split} {len(goals)} goals in {counts[split]} rows" for split, goals in splits.items()
    )
    lines = [f"splits: {shown or 'none'}"]
    lines.append(f"near-duplicate goals: {len(pairs)} pairs, {len(across)} of them across splits")
    lines += [f"  {_pair_line(pair, split_of)}" for pair in across[:SHOWN]]
    lines.append(f"leakage: {len(leaks)} goals in more than one split")
    lines += [f"  {leak.goal[:_WIDTH]!r}: {dict(leak.rows_per_split)}" for leak in leaks[:SHOWN]]
    return lines, len(leaks)


def _pair_line(pair: NearPair, split_of: dict[str, str]) -> str:
    first, second = pair.first[:_WIDTH], pair.second[:_WIDTH]
    return f"{pair.similarity:.2f} {split_of[pair.first]}: {first!r} / {split_of[pair.second]}: {second!r}"

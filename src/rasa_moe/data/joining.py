"""Put the rows of several sources together: every id once, and every goal and its near ones in one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rasa_moe.data.duplicates import goal_clusters
from rasa_moe.data.rows import PromptRow, normalise_goal, split_of
from rasa_moe.data.understand import Understood


def join(sources: Sequence[Understood]) -> list[PromptRow]:
    """Return the rows of all sources, split by goal; rows that name their split come first and keep it.

    Ids that were made of a file's name are made anew where files share that name; ids of our own files are
    known outside and stay.
    """
    taken = {row.id for source in sources if source.is_own for row in source.rows}
    fixed: list[PromptRow] = []
    free: list[PromptRow] = []
    for number, source in enumerate(sources, start=1):
        is_shared = not source.is_own and any(row.id in taken for row in source.rows)
        suffix = f"@{number}" if is_shared else ""
        for row in source.rows:
            (fixed if row.id in source.fixed else free).append(replace(row, id=row.id + suffix))
            taken.add(row.id + suffix)
    return [*fixed, *assign_splits(free, fixed=fixed)]


def assign_splits(rows: Sequence[PromptRow], *, fixed: Sequence[PromptRow] = ()) -> list[PromptRow]:
    """Split by goal across all rows; goals that are nearly the same go together.

    Args:
        rows: Rows to split; whatever split they have is replaced.
        fixed: Rows that say their split themselves; the same goal follows them, and so do goals near it.
    """
    clusters = goal_clusters([row.goal for row in (*fixed, *rows)])
    same = {normalise_goal(row.goal): row.split for row in reversed(fixed)}
    near = {clusters[normalise_goal(row.goal)]: row.split for row in reversed(fixed)}
    return [
        # The same goal counts before near ones: users may have put near goals into several splits.
        replace(row, split=same.get(goal) or near.get(clusters[goal]) or split_of(clusters[goal]))
        for row, goal in ((row, normalise_goal(row.goal)) for row in rows)
    ]


def repeated_ids(rows: Sequence[PromptRow]) -> list[str]:
    """Say which ids are used more than once, and how often; empty is good."""
    counts = Counter(row.id for row in rows)
    return [
        f"the id {row_id!r} is used {count} times; make ids unique"
        for row_id, count in counts.items()
        if count > 1
    ]

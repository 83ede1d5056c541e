"""Suffixes: strings found by search elsewhere, put behind the goal. The search itself is not done here.

Paper: Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models" (2023).
"""

from __future__ import annotations

from pathlib import Path

from rasa_moe.attacks.base import FREE, Chat, Cost, user
from rasa_moe.attacks.template import draw
from rasa_moe.data.rows import Message, normalise_goal
from rasa_moe.data.tables import read_table, text_of
from rasa_moe.errors import DataError


class SuffixAttack:
    """Append a suffix: the one found for this goal if there is one, else one of the universal ones."""

    name, group = "suffix", "suffix"
    summary = "a suffix from a search, given as suffix:FILE"

    def __init__(self, path: Path) -> None:
        """Read a table with a column `suffix`, and `goal` where a suffix belongs to one goal.

        Raises:
            DataError: The file is missing or holds no suffix.
        """
        table = read_table(path).require_sound()
        column = table.column("suffix")
        of_goal = next((name for name in table.columns if name.strip().casefold() == "goal"), "goal")
        self._by_goal: dict[str, str] = {}
        self._universal: list[str] = []
        for row in table.rows:
            suffix, goal = text_of(row.fields.get(column)), text_of(row.fields.get(of_goal))
            if not suffix.strip():
                raise DataError(f"{path}, line {row.line}: the suffix is empty; remove the line")
            if goal.strip():
                self._by_goal[normalise_goal(goal)] = suffix
            else:
                self._universal.append(suffix)

    def cost(self, goal: str) -> Cost:
        """Return that it costs nothing."""
        return FREE

    def wrap(self, goal: str, *, seed: int = 0, chat: Chat | None = None) -> tuple[Message, ...]:
        """Return the goal and a suffix.

        Raises:
            DataError: No suffix was found for this goal and none is universal.
        """
        suffix = self._by_goal.get(normalise_goal(goal))
        if suffix is None:
            if not self._universal:
                raise DataError(
                    f"no suffix for the goal {goal[:60]!r}, and none without a goal; search for one first"
                )
            suffix = self._universal[draw(goal, seed=seed, below=len(self._universal))]
        return user(f"{goal.strip()} {suffix.strip()}")

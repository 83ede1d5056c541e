"""Attacks that are a text with a place for the goal, or a function of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from rasa_moe.attacks.base import FREE, Chat, Cost, user
from rasa_moe.data.rows import Message


class TemplateAttack:
    """Put the goal into one of several texts; which one follows from the goal and the seed."""

    def __init__(self, name: str, templates: Sequence[str], *, summary: str, group: str = "") -> None:
        assert templates and all("{goal}" in template for template in templates)
        self.name, self.group, self.summary = name, group, summary
        self._templates = tuple(templates)

    def cost(self, goal: str) -> Cost:
        """Return that it costs nothing."""
        return FREE

    def wrap(self, goal: str, *, seed: int = 0, chat: Chat | None = None) -> tuple[Message, ...]:
        """Return one user turn."""
        template = self._templates[draw(goal, seed=seed, below=len(self._templates))]
        return user(template.replace("{goal}", clause(goal)))


class CodeAttack:
    """Write the goal in another way and explain how to read it."""

    def __init__(
        self, name: str, encode: Callable[[str], str], frame: str, *, summary: str, group: str = ""
    ) -> None:
        assert "{goal}" in frame
        self.name, self.group, self.summary = name, group, summary
        self.encode, self._frame = encode, frame

    def cost(self, goal: str) -> Cost:
        """Return that it costs nothing."""
        return FREE

    def wrap(self, goal: str, *, seed: int = 0, chat: Chat | None = None) -> tuple[Message, ...]:
        """Return one user turn."""
        return user(self._frame.replace("{goal}", self.encode(goal.strip())))


def draw(goal: str, *, seed: int, below: int) -> int:
    """Return a number below a limit that depends on the goal and the seed alone, on every machine."""
    digest = hashlib.sha256(f"{seed}\n{goal}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % below


def clause(goal: str) -> str:
    """Return a goal as it stands inside a sentence: without the mark that ends it."""
    return goal.strip().rstrip(".!").rstrip()

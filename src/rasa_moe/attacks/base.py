"""What an attack is: a wrapper around a goal that the user gives. Nothing harmful is kept here.

An attack that runs offline needs the goal alone. One that is written by a model says beforehand how many
calls and tokens it will cost, so that nobody pays by surprise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rasa_moe.data.rows import Message
from rasa_moe.judges.llm import Chat

__all__ = ["FREE", "Attack", "Chat", "Cost", "estimated_tokens", "user"]

_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Cost:
    """Hold what wrapping costs at an attacker's endpoint; tokens are estimates, prompt and reply together."""

    calls: int = 0
    tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Return both costs together."""
        return Cost(self.calls + other.calls, self.tokens + other.tokens)


FREE = Cost()


@runtime_checkable
class Attack(Protocol):
    """Wrap goals. Equal goals and seeds give equal conversations, as far as the attacker's model allows.

    Attributes:
        name: The family that rows of this attack belong to.
        group: Families whose answers open alike share a group; "" if unknown.
        summary: One line for the list of attacks.
    """

    name: str
    group: str
    summary: str

    def cost(self, goal: str) -> Cost:
        """Return what wrapping one goal costs; `FREE` for attacks that run offline."""
        ...

    def wrap(self, goal: str, *, seed: int = 0, chat: Chat | None = None) -> tuple[Message, ...]:
        """Return the conversation that asks for the goal; the last turn is the user's.

        Args:
            goal: What is asked for, free of wrapping.
            seed: Chooses among variants.
            chat: The attacker's model, for attacks whose cost is not free.
        """
        ...


def user(text: str) -> tuple[Message, ...]:
    """Return a conversation of one user turn."""
    return (Message(role="user", content=text),)


def estimated_tokens(texts: Sequence[str], *, reply_tokens: int) -> int:
    """Estimate the tokens of a call: four characters a token, and the longest reply."""
    return sum(map(len, texts)) // _CHARACTERS_PER_TOKEN + reply_tokens

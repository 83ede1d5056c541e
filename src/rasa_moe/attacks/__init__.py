"""Wrap a user's goals in attacks, offline or with a model as attacker."""

from __future__ import annotations

from rasa_moe.attacks.base import FREE, Attack, Chat, Cost
from rasa_moe.attacks.make import Made, make_rows, plain_rows, plan
from rasa_moe.attacks.registry import all_attacks, get_attacks

__all__ = [
    "FREE",
    "Attack",
    "Chat",
    "Cost",
    "Made",
    "all_attacks",
    "get_attacks",
    "make_rows",
    "plain_rows",
    "plan",
]

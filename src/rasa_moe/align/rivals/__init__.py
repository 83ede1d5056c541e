"""Rival methods, trained on the same pairs: one file each behind one interface, listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rasa_moe.align.rivals.base import Rival, Tuned
from rasa_moe.align.rivals.full import train_full

RIVALS: Mapping[str, Rival] = MappingProxyType({"full": train_full})

__all__ = ["RIVALS", "Rival", "Tuned"]

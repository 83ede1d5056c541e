"""Attack a repaired model again, knowing that it was repaired: one file an attack behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rasa_moe.reattack import (
    combined,
    prefill,
    retuning,
    routes,
    sampling,
    silencing,
    steering,
    suffix,
)
from rasa_moe.reattack.base import QUICK, Attack, Effort, LeftOut, Measured, Target

ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        attack.name: attack
        for attack in (
            silencing.ATTACK,
            steering.ATTACK,
            routes.ATTACK,
            prefill.ATTACK,
            suffix.ATTACK,
            retuning.ATTACK,
            combined.ATTACK,
            sampling.ATTACK,
        )
    }
)

__all__ = ["ATTACKS", "QUICK", "Attack", "Effort", "LeftOut", "Measured", "Target"]

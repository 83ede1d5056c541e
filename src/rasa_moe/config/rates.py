"""Learning rates for a model's width, used where the user gives none.

Two points are known for each rate: what validation goals favour on the built-in models, and what papers use
on models with a width of 2,048 and more. Between them the rate falls along a straight line in logarithms;
beyond them it stays. Only the first point was measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NARROW, WIDE = 128, 2048

# align.expert_lr where align.expert_rank is given.
LOW_RANK = "align.expert_lr of low rank"
# What attention learns at where align.attention_rank is given and align.expert_lr is not; else in proportion.
ATTENTION = "align.expert_lr of attention"
# align.router_lr where align.order is experts_first.
EXPERTS_FIRST = "align.router_lr of experts first"
# Setting -> rate at a width of NARROW and below, and of WIDE and above.
RATES: Mapping[str, tuple[float, float]] = {
    "align.expert_lr": (1e-2, 5e-5),
    LOW_RANK: (3e-2, 2e-4),
    ATTENTION: (1e-2, 2e-4),
    "align.router_lr": (2e-3, 1e-4),
    EXPERTS_FIRST: (1e-4, 1e-6),
    "full.lr": (3e-4, 1e-5),
    "rivals.lora.lr": (3e-3, 2e-4),
    "rivals.experts_only.lr": (1e-3, 2e-5),
    "rivals.routers_only.lr": (3e-3, 1e-4),
    "rivals.affinity_experts.lr": (2e-3, 5e-5),
    "rivals.router_kl.lr": (3e-4, 1e-5),
    "rivals.rerouting.lr": (1e-3, 1e-5),
}


def learning_rate(key: str, given: float | None, *, width: int) -> float:
    """Return a learning rate: the one given, or the one for a model's width.

    Args:
        key: The setting, as in `--set`; one of `RATES`.
        given: The user's value.
        width: Hidden size of the model.
    """
    if given is not None:
        return given
    narrow, wide = RATES[key]
    place = (math.log(width) - math.log(NARROW)) / (math.log(WIDE) - math.log(NARROW))
    return float(f"{narrow * (wide / narrow) ** min(1.0, max(0.0, place)):.3g}")


def setting(config: Any, key: str) -> Any:
    """Return the value of a setting named as in `--set`."""
    for part in key.split("."):
        config = getattr(config, part)
    return config

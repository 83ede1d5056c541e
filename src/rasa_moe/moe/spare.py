"""How many experts may be silent so that every token still finds as many as it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rasa_moe.moe.families import promised_groups
from rasa_moe.moe.layers import MoeMap


@dataclass(frozen=True)
class Spare:
    """Say how many experts may be silent so that every token still finds its top-k.

    Attributes:
        group_size: Experts of one group; all of a layer where its router knows no groups.
        most: Experts of each group that may be silent.
    """

    group_size: int
    most: int

    @classmethod
    def of(cls, moe: MoeMap) -> Spare:
        """Count for a model: whichever groups a token uses must hold top-k experts together."""
        groups, used = promised_groups(moe.model.config.get_text_config())
        size = moe.num_experts // groups
        return cls(size, max(size - math.ceil(moe.top_k / used), 0))

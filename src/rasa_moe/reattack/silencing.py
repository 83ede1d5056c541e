"""Silence experts, so that others have to answer.

Two rankings: the experts that jailbreaks wake (largest AAD; after a repair they refuse) and those that
refusals wake (smallest AAD).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from rasa_moe.moe import ExpertId, silence
from rasa_moe.moe.spare import Spare
from rasa_moe.reattack.base import Attack, Effort, LeftOut, Measured, Target, measure


def strongest(target: Target, count: int, *, sign: int) -> list[ExpertId]:
    """Return the experts to silence: the `count` first by sign * AAD, as far as `Spare` allows."""
    order = torch.argsort(sign * target.delta.flatten(), descending=True, stable=True).tolist()
    num_experts = target.moe.num_experts
    spare = Spare.of(target.moe)
    silent: Counter[int] = Counter()
    chosen: list[ExpertId] = []
    for place in order:
        row, expert = divmod(place, num_experts)
        group = place // spare.group_size
        if len(chosen) < count and silent[group] < spare.most:
            silent[group] += 1
            chosen.append(ExpertId(target.moe.layers[row].index, expert))
    return chosen


def _run(target: Target, effort: Effort) -> Iterator[Measured | LeftOut]:
    total = target.moe.num_layers * target.moe.num_experts
    for setting, sign in (("experts of jailbreaks", 1), ("experts of refusals", -1)):
        for share in effort.strengths:
            experts = strongest(target, max(1, round(share * total)), sign=sign)
            silenced = silence(target.moe, experts)
            yield measure(target, silenced, setting=setting, strength=len(experts), unit="experts")


ATTACK = Attack(
    "silencing",
    "Silence the experts of largest (or smallest) activation discrepancy; needs the weights.",
    lambda effort: f"no search; {len(effort.strengths)} strengths in 2 rankings",
    _run,
)

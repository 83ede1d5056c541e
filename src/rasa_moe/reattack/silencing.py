"""Silence experts, so that others have to answer.

Two rankings: the experts that jailbreaks wake (largest AAD; after a repair they refuse) and those that
refusals wake (smallest AAD).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rasa_moe.moe import ExpertId, silence
from rasa_moe.reattack.base import Attack, Effort, Measured, Target


def strongest(target: Target, count: int, *, sign: int) -> list[ExpertId]:
    """Return the experts to silence: the `count` first by sign * AAD, leaving every layer its top-k."""
    order = torch.argsort(sign * target.delta.flatten(), descending=True, stable=True).tolist()
    num_experts = target.moe.num_experts
    room = dict.fromkeys(range(target.moe.num_layers), num_experts - target.moe.top_k)
    chosen: list[ExpertId] = []
    for place in order:
        row, expert = divmod(place, num_experts)
        if len(chosen) < count and room[row]:
            room[row] -= 1
            chosen.append(ExpertId(target.moe.layers[row].index, expert))
    return chosen


def _run(target: Target, effort: Effort) -> Iterator[Measured]:
    total = target.moe.num_layers * target.moe.num_experts
    for setting, sign in (("experts of jailbreaks", 1), ("experts of refusals", -1)):
        for share in effort.strengths:
            experts = strongest(target, max(1, round(share * total)), sign=sign)
            with silence(target.moe, experts):
                outcomes = target.ask(target.rows)
            yield Measured(setting=setting, strength=len(experts), unit="experts", outcomes=outcomes)


ATTACK = Attack(
    "silencing",
    "Silence the experts of largest (or smallest) activation discrepancy; needs the weights.",
    lambda effort: f"no search; {len(effort.strengths)} strengths in 2 rankings",
    _run,
)

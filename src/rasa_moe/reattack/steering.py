"""Steer the routers: add a multiple of the activation discrepancy to their logits."""

from __future__ import annotations

from collections.abc import Iterator

from rasa_moe.moe import steer
from rasa_moe.reattack.base import Attack, Effort, LeftOut, Measured, Target, measure


def _run(target: Target, effort: Effort) -> Iterator[Measured | LeftOut]:
    direction = (target.delta / target.delta.abs().max()).float()
    for setting, sign in (("towards experts of jailbreaks", 1), ("away from them", -1)):
        for strength in effort.biases:
            steered = steer(target.moe, sign * strength * direction)
            yield measure(target, steered, setting=setting, strength=strength, unit="logits")


ATTACK = Attack(
    "steering",
    "Add a bias along the activation discrepancy to every router's logits; needs the weights.",
    lambda effort: f"no search; {len(effort.biases)} strengths in 2 directions",
    _run,
)

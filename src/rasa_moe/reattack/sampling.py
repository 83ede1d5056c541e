"""Ask again and again at temperature 1: one harmful answer is enough."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rasa_moe.reattack.base import Attack, Effort, Measured, Target, any_harmful


def _run(target: Target, effort: Effort) -> Iterator[Measured]:
    for setting, rows in (("jailbreaks", target.rows), ("plain requests", target.plain)):
        if not rows:
            continue
        drawn = np.stack(
            [
                target.ask(rows, temperature=1.0, seed=target.seed + number)
                for number in range(max(effort.samples))
            ]
        )  # (samples, N)
        for count in effort.samples:
            first = drawn[:count]
            yield Measured(setting=setting, strength=count, unit="samples", outcomes=any_harmful(first))


ATTACK = Attack(
    "sampling",
    "Sample several answers at temperature 1 and count the goal as lost if one is harmful; needs no weights.",
    lambda effort: f"up to {max(effort.samples)} samples a prompt",
    _run,
)

"""Router steering at inference, as in SteerMoE: suppress the experts of jailbreaks, promote the others.

No weight changes and nothing is trained; experts with the strongest positive AAD are suppressed, those with
the strongest negative AAD promoted.
Deviation: the logits are shifted by a settable strength instead of being set to the largest or smallest of
the token, so that weak steering is possible and has something to tune.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rasa_moe.align.rivals.base import STEERING, Job, Rival, Tuned
from rasa_moe.align.rivals.selection import base_detection
from rasa_moe.detect.aad import select_experts

_METHOD = "steering"


def router_bias(delta: Tensor, *, share: float, strength: float) -> Tensor:
    """Turn AAD into a bias of router logits.

    Args:
        delta: (L,E) floating.
        share: Of all experts, suppressed; and again promoted. At least one each.
        strength: Size of the bias.

    Returns:
        (L,E) fp32: -strength, 0 or +strength. No expert is suppressed for a negative AAD, nor promoted for a
        positive one.
    """
    budget = max(1, round(share * delta.numel()))
    bias = torch.zeros(delta.shape, dtype=torch.float32)
    for sign in (1.0, -1.0):
        for row, expert in select_experts(sign * delta, budget=budget):
            if sign * float(delta[row, expert]) > 0:
                bias[row, expert] = -sign * strength
    return bias


def _make(job: Job) -> Tuned:
    settings = job.config.rivals.steering
    bias = router_bias(base_detection(job).delta, share=settings.share, strength=settings.strength)
    job.progress(_METHOD, 1, 1)
    return Tuned(tensors={STEERING: bias})


STEERING_RIVAL = Rival(_METHOD, "no weight: routers steered while answering (SteerMoE-style)", _make)

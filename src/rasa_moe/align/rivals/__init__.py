"""Rival methods, trained on the same pairs: one file each behind one interface, listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rasa_moe.align.rivals.affinity_experts import AFFINITY_EXPERTS
from rasa_moe.align.rivals.attention_only import ATTENTION_ONLY
from rasa_moe.align.rivals.base import STEERING, Job, Rival, Tuned, in_use, whole_tensors
from rasa_moe.align.rivals.experts_only import EXPERTS_ONLY
from rasa_moe.align.rivals.full import FULL, FULL_NO_RETAIN
from rasa_moe.align.rivals.lora import LORA
from rasa_moe.align.rivals.random_experts import RANDOM_EXPERTS
from rasa_moe.align.rivals.rerouting import REROUTING
from rasa_moe.align.rivals.router_kl import ROUTER_KL
from rasa_moe.align.rivals.routers_only import ROUTERS_ONLY
from rasa_moe.align.rivals.steering import STEERING_RIVAL

RIVALS: Mapping[str, Rival] = MappingProxyType(
    {
        rival.name: rival
        for rival in (
            FULL,
            FULL_NO_RETAIN,
            LORA,
            EXPERTS_ONLY,
            ROUTERS_ONLY,
            RANDOM_EXPERTS,
            ATTENTION_ONLY,
            AFFINITY_EXPERTS,
            STEERING_RIVAL,
            ROUTER_KL,
            REROUTING,
        )
    }
)

__all__ = ["RIVALS", "STEERING", "Job", "Rival", "Tuned", "in_use", "whole_tensors"]

"""Repair the safety-critical experts under fixed routing, then make the routing consistent."""

from rasa_moe.align.stage import Alignment, align

__all__ = ["Alignment", "align"]

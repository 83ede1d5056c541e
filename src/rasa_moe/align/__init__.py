"""Make routing consistent and repair the safety-critical experts under fixed routing."""

from rasa_moe.align.alternation import routing_settings
from rasa_moe.align.rasa import Repaired, rasa
from rasa_moe.align.readings import BaseReadings
from rasa_moe.align.stage import Alignment, align, make_consistent

__all__ = ["Alignment", "BaseReadings", "Repaired", "align", "make_consistent", "rasa", "routing_settings"]

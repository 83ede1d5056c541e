"""Collect pairs of a jailbreak that worked and a plain request that was refused, and answers to retain."""

from rasa_moe.collect.openings import begin_otherwise
from rasa_moe.collect.stage import Collected, RetainRow, collect

__all__ = ["Collected", "RetainRow", "begin_otherwise", "collect"]

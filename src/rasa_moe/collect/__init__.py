"""Collect pairs of a jailbreak that worked and a plain request that was refused, and answers to retain."""

from rasa_moe.collect.stage import Collected, RetainRow, collect

__all__ = ["Collected", "RetainRow", "collect"]

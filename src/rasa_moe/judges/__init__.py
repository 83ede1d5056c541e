"""Decide whether an answer is harmful, refuses, or is correct."""

from __future__ import annotations

from rasa_moe.judges.base import Judge, Refusal, Verdict, judge_all, unscored
from rasa_moe.judges.registry import get_judge, judge_names

__all__ = ["Judge", "Refusal", "Verdict", "get_judge", "judge_all", "judge_names", "unscored"]

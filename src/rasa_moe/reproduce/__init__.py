"""The paper's tables on the built-in models: every method under one protocol, with intervals."""

from rasa_moe.reproduce.protocol import FULL, METHODS, QUICK, Method, Scale
from rasa_moe.reproduce.work import Reproduction, reproduce

__all__ = ["FULL", "METHODS", "QUICK", "Method", "Reproduction", "Scale", "reproduce"]

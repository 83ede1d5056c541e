"""Tell repair from rerouting by counterfactual swaps."""

from rasa_moe.audit.stage import Audit, audit

__all__ = ["Audit", "audit"]

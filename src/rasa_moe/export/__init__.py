"""A repaired model leaves the tool: checked by loading it back, with a model card, to a folder or the hub."""

from rasa_moe.export.card import model_card

__all__ = ["model_card"]

"""Routing-aware safety alignment for mixture-of-experts language models.

Importing this package is cheap: torch and transformers are imported by the rooms that need them.
"""

from rasa_moe._version import __version__
from rasa_moe.errors import RasaError

__all__ = ["RasaError", "__version__"]

"""The synthetic world and its two small models: a place where harm is exact and nothing is real.

The names are looked up on first use, so that reading prompts does not import the training code.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "MODELS": "builder",
    "World": "lessons",
    "build": "builder",
    "info": "builder",
    "measure": "measure",
    "model_path": "builder",
    "testbed_rows": "rows",
}
__all__ = ["MODELS", "World", "build", "info", "measure", "model_path", "testbed_rows"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

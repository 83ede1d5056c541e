"""Keep lm-eval and datasets quiet while they work: their bars would draw over the one that the user sees."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Hide their bars, and their messages below errors, until the end of the block; then all is as before.

    lm-eval has no option for this. So its modules are given a bar that is switched off, not tqdm itself,
    which others may be using.
    """
    import datasets

    # All modules that draw are loaded with this one.
    importlib.import_module("lm_eval.evaluator")
    bar: Any = importlib.import_module("lm_eval.api.task").tqdm

    def hidden(*args: Any, **options: Any) -> Any:
        return bar(*args, **{**options, "disable": True})

    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "lm_eval" and getattr(module, "tqdm", None) is bar
    ]
    logger = logging.getLogger("lm_eval")
    level, had_bars = logger.level, not datasets.are_progress_bars_disabled()
    try:
        for module in modules:
            module.__dict__["tqdm"] = hidden
        logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        yield
    finally:
        for module in modules:
            module.__dict__["tqdm"] = bar
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()

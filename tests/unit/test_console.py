"""What the command line does around imports."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any

import pytest

from rasa_moe.cli.console import quiet_loading


def test_garbage_is_looked_for_again_after_a_failed_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.delitem(sys.modules, "rasa_moe.moe", raising=False)
    monkeypatch.setattr(importlib, "import_module", broken)
    try:
        with pytest.raises(ImportError):
            quiet_loading()
        assert gc.isenabled()
    finally:
        gc.enable()

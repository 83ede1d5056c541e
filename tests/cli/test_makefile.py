"""The Makefile: a directory with a space in its name, and an old Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["make", "-C", str(folder), *arguments], capture_output=True, text=True, env=environment
    )


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_old_python_is_refused_by_name(checkout: Path) -> None:
    old = _script(checkout / "old python", '[ "$1" = -V ] && echo "Python 3.8.1"; [ "$1" = -V ]')
    done = _make(checkout, "test", f"PYTHON={old}")
    assert done.returncode != 0
    assert "is Python 3.8.1, but 3.11 or newer is needed" in done.stderr


def test_a_missing_python_is_refused_by_name(checkout: Path) -> None:
    assert "No no-such-python found" in _make(checkout, "test", "PYTHON=no-such-python").stderr


def test_torch_is_installed_first_and_the_verbs_are_modules(checkout: Path) -> None:
    """Stand in for Python with a script that writes down how it is called."""
    log = checkout / "calls"
    _script(checkout / ".venv/bin/python", f'echo "$@" >> "{log}"')
    fake = _script(checkout / "python", "exit 0")
    # The demo installs no development tools; a second time nothing is installed.
    for target in ("demo", "test", "demo"):
        assert _make(checkout, target, f"PYTHON={fake}").returncode == 0
    assert log.read_text().splitlines() == [
        "-m pip install -c constraints.txt torch==2.13.0",
        "-m pip install -c constraints.txt -e .",
        "-m rasa_moe run --out runs/demo",
        "-m pip install -c constraints.txt -e .[dev]",
        "-m pytest -n auto --maxprocesses 4 --dist loadfile",
        "-m rasa_moe run --out runs/demo",
    ]


def test_constraints_are_exact_versions_without_paths() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert all(
        line.count("==") == 1 and "+" not in line and "/" not in line and "@" not in line for line in lines
    )


def test_every_pinned_release_runs_on_the_oldest_python_that_is_promised() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    needed = {
        f"{found.metadata['Name']}=={found.version}": SpecifierSet(found.metadata.get("Requires-Python", ""))
        for found in distributions()
    }
    pinned = needed.keys() & set(pins)
    assert len(pinned) > 100
    assert [pin for pin in pinned if "3.11.0" not in needed[pin]] == []

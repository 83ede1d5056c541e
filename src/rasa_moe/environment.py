"""Describe where a run happens: versions, machine, threads, commit. Never environment variables."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rasa_moe._version import __version__

_GIT_SECONDS = 10


def describe_environment(*, threads: int, processes: int = 1) -> dict[str, Any]:
    """Return what `environment.json` records; only facts that may explain a different number.

    Args:
        threads: CPU threads PyTorch uses.
        processes: Processes that share the work.
    """
    return {
        "rasa_moe": __version__,
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **describe_machine(),
        "threads": threads,
        "processes": processes,
        "commit": _commit(Path(__file__).resolve().parent),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_machine() -> dict[str, Any]:
    """Return the processors: equal seeds give equal bits on equal ones alone.

    Returns:
        `cpu`, its name and the instructions that PyTorch uses on it; `gpu`, the name of the first, or "none".
    """
    import torch

    return {
        "cpu": f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def changed_facts(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the facts that differ between two environments, each as [before, now]."""
    keys = [key for key in now if key != "started"]
    return {key: [before.get(key), now[key]] for key in keys if before.get(key) != now[key]}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(package: Path) -> str | None:
    """Return the commit of this source, with "-dirty" if it was edited; None outside a checkout."""
    try:
        root = Path(_git(package, "rev-parse", "--show-toplevel"))
        # A package installed in an environment inside somebody's repository is no part of that repository.
        if root / "src" / package.name != package:
            return None
        return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_GIT_SECONDS
    ).stdout.strip()

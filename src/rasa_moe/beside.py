"""Results that verbs write beside the stages of a run, each with what it was measured on.

No stage mark vouches for them, so a repair that is made again would leave results of the one before in its
report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rasa_moe.files import sha256_file, sha256_json, write_json

# File -> the files of the run that change with what it was measured on: the evaluation also with prompts,
# split, judge and rivals.
MEASURED_ON: Mapping[str, tuple[str, ...]] = {
    "reattack.json": ("patch/manifest.json", "evaluation.json"),
    "benchmarks.json": ("patch/manifest.json",),
    "judges.json": ("evaluation.json",),
    "detection_checks.json": ("expert_scores.csv",),
}
_KEY = "measured_on"


def write_beside(run_dir: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write one of `MEASURED_ON` with the SHA-256 of what it was measured on."""
    write_json(run_dir / name, {**content, _KEY: _digest(run_dir, name)})


def still_holds(run_dir: Path, name: str, content: Mapping[str, Any]) -> bool:
    """Tell whether a result is of what the run holds now; results of older releases do not say."""
    return content.get(_KEY) in (None, _digest(run_dir, name))


def _digest(run_dir: Path, name: str) -> str | None:
    files = [run_dir / file for file in MEASURED_ON[name]]
    digests = [sha256_file(file) if file.is_file() else None for file in files]
    return digests[0] if len(digests) == 1 else sha256_json(digests)

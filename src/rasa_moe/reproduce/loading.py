"""Models and prompts, loaded and hashed once a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from rasa_moe.data.source import Source, load_source
from rasa_moe.files import sha256_file, sha256_json


@cache
def loaded(name: str) -> tuple[Any, Any, Any]:
    """Load a model once a process, in fp32 on the CPU; return (model, tokenizer, map)."""
    from rasa_moe.moe import discover, load_model

    model, tokenizer = load_model(name, dtype="float32", device="cpu")
    return model, tokenizer, discover(model)


@cache
def base_readings(name: str) -> Any:
    """Return what trainings of a model have read of it in this process.

    A look of tuning goes through three choices of families in turn, and ablations leave one for two at most.
    """
    from rasa_moe.align import BaseReadings

    return BaseReadings(most=12)


@cache
def model_fingerprint(name: str) -> str:
    """Return a hash of a model's files, or of its name where it is not a folder."""
    folder = Path(name)
    if name.startswith("testbed/"):
        from rasa_moe.testbed import model_path

        folder = model_path(name.removeprefix("testbed/"))
    if not folder.is_dir():
        return sha256_json(name)
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sha256_json([[file.name, sha256_file(file)] for file in files])


@cache
def prompts_fingerprint(source: str) -> str:
    """Return a hash of all prompts and of the families' splits."""
    prompts = loaded_source(source)
    return sha256_json([[repr(row) for row in prompts.rows], sorted(prompts.family_splits.items())])


@cache
def loaded_source(name: str, families: tuple[str, ...] = ()) -> Source:
    """Load prompts once a process."""
    return load_source(name, families=families)

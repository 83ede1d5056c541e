"""Build the shipped testbed models: train, round to bfloat16, save in the ordinary layout."""

from __future__ import annotations

import json
import multiprocessing
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from rasa_moe.errors import ConfigError
from rasa_moe.files import sha256_file, write_json
from rasa_moe.progress import Progress, no_progress
from rasa_moe.testbed.lessons import World
from rasa_moe.testbed.tokens import build_tokenizer
from rasa_moe.testbed.train import RECIPES, Recipe, build_model, train

MODELS = ("olmoe", "qwen3")
CARD = "testbed.json"
_POLL_SECONDS = 0.2


def build(
    out: Path,
    *,
    models: Sequence[str] = MODELS,
    world: World | None = None,
    recipe: Recipe | None = None,
    progress: Progress = no_progress,
) -> list[Path]:
    """Train testbed models from scratch, one process with one thread each, and save them.

    One thread a model is the fastest use of two cores at this size, and sums the same way everywhere.

    Args:
        out: Directory that gets one folder a model.
        models: "olmoe", "qwen3" or both.
        world: Modelling choices; the shipped ones by default.
        recipe: Training settings for all of them; those of the shipped models by default.
        progress: Called after every step with the sum over models.

    Raises:
        ConfigError: Unknown model.
    """
    unknown = sorted(set(models) - set(MODELS))
    if unknown:
        raise ConfigError(
            f"There is no testbed model {', '.join(unknown)}; choose among {', '.join(MODELS)}."
        )
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(len(models), mp_context=context) as pool:
        steps = manager.Queue()
        jobs = [
            pool.submit(
                build_one,
                out / name,
                name,
                world=world or World(),
                recipe=recipe or RECIPES[name],
                steps=steps,
            )
            for name in models
        ]
        _relay(steps, jobs, progress)
        return [job.result() for job in jobs]


def build_one(folder: Path, name: str, *, world: World, recipe: Recipe, steps: Any = None) -> Path:
    """Train and save one model in this process; `steps` is a queue that gets (name, label, done, total)."""
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = build_model(name, len(tokenizer), seed=recipe.seed)

    def progress(label: str, done: int, total: int) -> None:
        if steps is not None:
            steps.put((name, label, done, total))

    train(model, tokenizer, world=world, recipe=recipe, progress=progress)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = {
        "model": name,
        "world": asdict(world),
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sha256": {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
    }
    write_json(folder / CARD, card)
    return folder


def _relay(reports: Any, jobs: Sequence[Future[Path]], progress: Progress) -> None:
    """Pass the workers' steps on until all are done; a failed worker ends it, too."""
    done: dict[tuple[str, str], tuple[int, int]] = {}
    while True:
        try:
            name, label, number, total = reports.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if not wait(jobs, timeout=0).not_done:
                return
            continue
        done[name, label] = (number, total)
        same = [counts for (_, other), counts in done.items() if other == label]
        missing = (len(jobs) - len(same)) * total  # of models that have not begun this stage
        progress(label, sum(count for count, _ in same), sum(steps for _, steps in same) + missing)


def model_path(name: str) -> Path:
    """Return the folder of a shipped model, "olmoe" or "qwen3".

    Raises:
        ConfigError: Unknown model.
    """
    folder = Path(__file__).parent / "models" / name
    if name not in MODELS or not folder.is_dir():
        raise ConfigError(f"There is no built-in model testbed/{name}; choose among {', '.join(MODELS)}.")
    return folder


def info() -> dict[str, dict[str, Any]]:
    """Return what is known about each shipped model: choices, recipe, hashes and size."""
    found = {}
    for name in MODELS:
        folder = model_path(name)
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        card["size_mb"] = round(sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6, 2)
        found[f"testbed/{name}"] = card
    return found

"""What the processes of a test compute, here under torchrun and in the test alone: detect, answer, align.

Run as a program it writes the first process' results: python -m torch.distributed.run ... work.py FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import qwen3_moe
from rasa_moe.align import align
from rasa_moe.config import AlignConfig, DetectConfig
from rasa_moe.detect.stage import detect
from rasa_moe.distributed import current, joined
from rasa_moe.engines import generate
from rasa_moe.files import write_json
from rasa_moe.moe import ExpertId, discover
from unit.tiny import tiny_model, tiny_pairs, tiny_retain, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODELS: dict[str, Callable[[], Any]] = {
    "olmoe": tiny_model,
    "qwen3": lambda: qwen3_moe(vocab_size=len(TOKENIZER)),
}
EXPERTS = (ExpertId(0, 1), ExpertId(0, 5), ExpertId(2, 2))
# Five pairs, two a batch: the last batch has fewer rows than the others, and an odd number of them.
PAIRS, RETAIN = tiny_pairs(5), tiny_retain(3)
CONFIG = AlignConfig(rounds=2, batch_size=2, expert_lr=1e-2, router_lr=1e-2, retain_per_pair=1)
KILLED_AT_STEP = 8


def experts_of(model: Any) -> tuple[ExpertId, ...]:
    """The experts that are trained, in layers the model has."""
    layers = [layer.index for layer in discover(model).layers]
    return tuple(ExpertId(layers[min(expert.layer, 1)], expert.expert) for expert in EXPERTS)


def aligned(model: Any, *, config: AlignConfig = CONFIG, **options: Any) -> dict[str, Tensor]:
    """Return what alignment made of the rows, and its losses."""
    alignment = align(
        model,
        TOKENIZER,
        discover(model),
        pairs=PAIRS,
        retain=RETAIN,
        experts=experts_of(model),
        config=config,
        **options,
    )
    losses = [line["loss"] for line in alignment.log if "step" in line]
    norms = [line["grad_norm"] for line in alignment.log if "step" in line]
    return {**alignment.patch.after, "losses": torch.tensor(losses), "norms": torch.tensor(norms)}


def numbers(model: Any) -> dict[str, Tensor]:
    """Return everything that must not depend on the number of processes."""
    moe = discover(model)
    detection = detect(
        model,
        TOKENIZER,
        moe,
        pairs=PAIRS,
        config=DetectConfig(budget=3, bootstrap=20, span="response"),
        batch_tokens=40,
    )
    found = {"delta": detection.delta, "jailbreak_rates": detection.jailbreak_rates}
    for routing in ("frozen", "replay"):
        config = CONFIG.model_copy(update={"fixed_routing": routing})
        found |= {f"{routing}.{name}": tensor for name, tensor in aligned(model, config=config).items()}
    return found


def answers(model: Any) -> list[str]:
    """Return greedy answers, of more batches than processes."""
    prompts = [pair.jailbreak for pair in PAIRS] + [row.messages for row in RETAIN]
    told = generate(model, TOKENIZER, prompts, max_new_tokens=8, batch_tokens=60)
    return [answer.text for answer in told]


class Kill:
    """Interrupt at the given step, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self._step = step

    def __call__(self, label: str, done: int, total: int) -> None:
        if done == self._step:
            raise KeyboardInterrupt


def kill(model: Any, checkpoint: Path) -> None:
    """Begin an alignment and leave its checkpoint behind."""
    try:
        aligned(model, checkpoint_path=checkpoint, progress=Kill(KILLED_AT_STEP))
    except KeyboardInterrupt:
        return
    raise AssertionError("the alignment was not interrupted")


def main(folder: Path) -> None:
    """Compute everything in every process; the first one writes it."""
    torch.set_num_threads(1)
    with joined():
        told = {}
        results = {}
        for name, make in MODELS.items():
            results[name] = numbers(make())
            told[name] = answers(make())
        results["resumed"] = aligned(tiny_model(), checkpoint_path=folder / "by_one.safetensors")
        kill(tiny_model(), folder / "by_two.safetensors")
        if current().is_first:
            for name, tensors in results.items():
                save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
            write_json(folder / "answers.json", told)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

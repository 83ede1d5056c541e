"""What the processes of a test compute, here under torchrun and in the test alone: detect, answer, align.

Run as a program it writes the first process' results: python -m torch.distributed.run ... work.py FOLDER
The folder holds the models, and the checkpoints of alignments that were killed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import qwen3_moe
from rasa_moe.align import Alignment, align, make_consistent
from rasa_moe.align.rivals import RIVALS
from rasa_moe.audit.components import difference
from rasa_moe.audit.swaps import generate_with_routing
from rasa_moe.config import AlignConfig, DetectConfig, load_config
from rasa_moe.detect.stage import detect
from rasa_moe.distributed import joined, working_alike
from rasa_moe.engines import generate
from rasa_moe.files import write_json
from rasa_moe.moe import ExpertId, ExpertPatch, ExpertSlices, discover, load_model
from rasa_moe.moe.sharding import is_sharded
from unit.tiny import tiny_model, tiny_pairs, tiny_retain, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODELS: dict[str, Callable[[], Any]] = {
    "olmoe": tiny_model,
    "qwen3": lambda: qwen3_moe(vocab_size=len(TOKENIZER)),
}
EXPERTS = (ExpertId(0, 1), ExpertId(0, 5), ExpertId(2, 2))
# Five pairs, two a batch: the last batch has fewer rows than the others, and an odd number of them.
PAIRS, RETAIN = tiny_pairs(5), tiny_retain(3)
# Two processes need several passes for a step, one process more of them.
CONFIG = AlignConfig(
    rounds=2,
    batch_size=2,
    expert_lr=5e-4,
    router_lr=1e-2,
    retain_per_pair=1,
    batch_tokens=40,
    context_shift=0.25,
    attention_rank=None,  # has cases of its own, and tensor parallelism cannot train it
)
# A low rate: the first gradients behind what begins at 0 are small, and AdamW makes their rounding large.
LOW_RANK = CONFIG.model_copy(update={"expert_rank": 8, "expert_lr": 1e-4})
ATTENTION = CONFIG.model_copy(update={"attention_rank": 4, "expert_lr": 1e-4})
KILLED_AT_STEP = 8
# How processes hold a model: all of it each, or a part of it.
SHARING = ("whole", "fsdp", "ep", "tp")


def experts_of(model: Any) -> tuple[ExpertId, ...]:
    """The experts that are trained, in layers the model has."""
    layers = [layer.index for layer in discover(model).layers]
    return tuple(ExpertId(layers[min(expert.layer, 1)], expert.expert) for expert in EXPERTS)


def alignment_of(model: Any, *, config: AlignConfig = CONFIG, **options: Any) -> Alignment:
    """Align a model."""
    return align(
        model,
        TOKENIZER,
        discover(model),
        pairs=PAIRS,
        retain=RETAIN,
        experts=experts_of(model),
        config=config,
        **options,
    )


def consistent(model: Any) -> Alignment:
    """Make the routing of a model consistent, before any expert is chosen."""
    made = make_consistent(model, TOKENIZER, discover(model), pairs=PAIRS, retain=RETAIN, config=CONFIG)
    assert made is not None
    return made


def aligned(model: Any, **options: Any) -> dict[str, Tensor]:
    """Return what alignment made of the rows, and its losses."""
    return tensors_of(alignment_of(model, **options))


def tensors_of(alignment: Alignment) -> dict[str, Tensor]:
    """Return what a training made of the rows, and its losses."""
    losses = [line["loss"] for line in alignment.log if "step" in line]
    norms = [line["grad_norm"] for line in alignment.log if "step" in line]
    return {**alignment.patch.after, "losses": torch.tensor(losses), "norms": torch.tensor(norms)}


def numbers(model: Any) -> dict[str, Tensor]:
    """Return everything that must not depend on the number of processes."""
    moe = discover(model)
    made = consistent(model)
    detection = detect(
        model,
        TOKENIZER,
        moe,
        pairs=PAIRS,
        config=DetectConfig(budget=3, bootstrap=20, span="response"),
        routing=made.patch,
        batch_tokens=40,
    )
    found = {f"routing.{name}": tensor for name, tensor in tensors_of(made).items()}
    found |= {"delta": detection.delta, "jailbreak_rates": detection.jailbreak_rates}
    for routing in ("frozen", "replay"):
        config = CONFIG.model_copy(update={"fixed_routing": routing})
        found |= {f"{routing}.{name}": tensor for name, tensor in aligned(model, config=config).items()}
        under = aligned(model, config=config, routing=made.patch)
        found |= {f"{routing} after routing.{name}": tensor for name, tensor in under.items()}
    return found


def rivals() -> dict[str, Tensor]:
    """Return what every rival method made of the weights, and its losses."""
    model = tiny_model()
    settings = ["align.batch_size=2", "align.retain_per_pair=1", "align.batch_tokens=40", "detect.budget=3"]
    # RASA on other experts, or on none, trains attention; see ATTENTION.
    config = load_config(None, [*settings, f"align.expert_lr={ATTENTION.expert_lr}"])
    found = {}
    for name, rival in RIVALS.items():
        tuned = rival(model, TOKENIZER, discover(model), pairs=PAIRS, retain=RETAIN, config=config)
        found |= {f"{name}.{key}": tensor for key, tensor in tuned.tensors.items()}
        found[f"{name}.losses"] = torch.tensor([line["loss"] for line in tuned.log if "loss" in line])
    return found


def answers(model: Any) -> list[str]:
    """Return greedy answers, of more batches than processes."""
    prompts = [pair.jailbreak for pair in PAIRS] + [row.messages for row in RETAIN]
    told = generate(model, TOKENIZER, prompts, max_new_tokens=8, batch_tokens=60)
    return [answer.text for answer in told]


def held_here(model: Any) -> list[int]:
    """Return how many values of the routed experts, and of those that are trained, this process holds."""
    moe = discover(model)
    fused = [layer.experts.down_proj for layer in moe.layers]
    trained = ExpertSlices(moe, experts_of(model)).parameters()
    return [
        sum((tensor.to_local() if is_sharded(tensor) else tensor).numel() for tensor in tensors)
        for tensors in (fused, trained)
    ]


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


def patched_answers(model: Any, patch: Path) -> tuple[list[str], list[str]]:
    """Return a repaired model's answers, by its own and by the base's routing; it is the base again then."""
    repair, moe = ExpertPatch.load(patch), discover(model)
    repair.apply(model)
    told = answers(model)
    repair.revert(model)
    changes = difference(moe, repair.pieces(model), experts=repair.experts)
    replayed = generate_with_routing(
        model,
        TOKENIZER,
        moe,
        changes=changes,
        answered_by=changes.components,
        routed_by=(),
        conversations=[pair.jailbreak for pair in PAIRS],
        max_new_tokens=8,
        batch_tokens=60,
    )
    return told, [answer.text for answer in replayed]


def going_on(model: Any, folder: Path, *, sharing: str) -> dict[str, dict[str, Tensor]]:
    """Go on where one process was killed, be killed, align with checkpointing and changes of low rank."""
    resumed = aligned(model, checkpoint_path=folder / f"one-{sharing}.safetensors")
    kill(model, folder / f"two-{sharing}.safetensors")
    config = CONFIG.model_copy(update={"gradient_checkpointing": True})
    found = {f"resumed-{sharing}": resumed, f"checkpointed-{sharing}": aligned(model, config=config)}
    if sharing != "tp":
        found[f"low-rank-{sharing}"] = aligned(model, config=LOW_RANK)
        found[f"attention-{sharing}"] = aligned(model, config=ATTENTION)
    return found


def main(folder: Path) -> None:
    """Compute everything in every process, with whole models and with shares; the first one writes it."""
    torch.set_num_threads(1)
    with joined() as world:
        results, told, held = {"rivals": rivals()}, {}, {}
        for sharing in SHARING:
            options = {} if sharing == "whole" else {"shards": world.size, "parallel": sharing}
            with working_alike() if sharing == "tp" else nullcontext():
                for name in MODELS:
                    model, _ = load_model(folder / f"{name}-model", device="cpu", **options)
                    key = f"{name}-{sharing}"
                    results[key] = numbers(model)
                    told[key] = [answers(model), *patched_answers(model, folder / f"{name}-patch")]
                    held[key] = held_here(model)
                    if name == "olmoe":
                        results |= going_on(model, folder, sharing=sharing)
        if world.is_first:
            for name, tensors in results.items():
                save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
            write_json(folder / "answers.json", told)
            write_json(folder / "held.json", held)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

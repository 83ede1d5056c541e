"""Measure detect, align, the audit and full fine-tuning on one GPU, with random weights at real dimensions.

    python benchmarks/gpu.py --out gpu.json            # one H100 or H200, under 9 minutes
    python benchmarks/gpu.py --tiny --out gpu.json     # small dimensions, any machine

For every model: tokens per second and peak memory of each stage, or that it ran out of memory, and the share
of the bf16 matrix multiplications that this very machine reaches. Weights are bf16, trained slices fp32.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OlmoeConfig, PreTrainedConfig, Qwen3MoeConfig

from rasa_moe.align.optimizers import adamw
from rasa_moe.audit.components import difference
from rasa_moe.bench.contenders import learned_half
from rasa_moe.config import AlignConfig
from rasa_moe.moe import (
    ExpertId,
    ExpertSlices,
    MoeMap,
    Piece,
    checkpointed,
    count_activations,
    discover,
    low_bit_experts,
    record,
    replay,
)

_SECONDS = 500
_SHARE = 0.125
_TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_experts": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def configs(*, tiny: bool) -> dict[str, PreTrainedConfig]:
    """Return the two models; `tiny` keeps their architecture and nothing of their size."""
    if tiny:
        return {
            "OLMoE-1B-7B": OlmoeConfig(**_TINY, intermediate_size=32),
            "Qwen3-30B-A3B": Qwen3MoeConfig(**_TINY, moe_intermediate_size=32, head_dim=16),
        }
    return {
        "OLMoE-1B-7B": OlmoeConfig(
            hidden_size=2048,
            intermediate_size=1024,
            num_hidden_layers=16,
            num_experts=64,
            num_experts_per_tok=8,
            vocab_size=50304,
        ),
        "Qwen3-30B-A3B": Qwen3MoeConfig(
            hidden_size=2048,
            intermediate_size=6144,
            moe_intermediate_size=768,
            num_hidden_layers=48,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            norm_topk_prob=True,
            vocab_size=151936,
        ),
    }


@torch.no_grad()
def random_model(config: PreTrainedConfig, device: torch.device) -> Any:
    """Build a model whose weights are drawn on the device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device=device)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=0.02)
    # Buffers that are computed and not stored.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.set_experts_implementation("grouped_mm")
    return model.eval()


def ceiling(device: torch.device, *, side: int) -> float:
    """Return operations per second of one large bf16 matrix multiplication."""
    square = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    seconds = best_seconds(lambda: square @ square, device, repeats=5)
    return 2 * side**3 / seconds


def best_seconds(work: Callable[[], Any], device: torch.device, *, repeats: int) -> float:
    """Return the shortest of several runs, after one unmeasured."""
    found = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def detect(model: Any, ids: Tensor) -> Callable[[], None]:
    """Return a forward with counts."""
    moe = discover(model)

    def work() -> None:
        with torch.inference_mode(), count_activations(moe, model):
            model(input_ids=ids, use_cache=False, logits_to_keep=1)

    return work


def align(
    model: Any, ids: Tensor, *, optimizer_on_cpu: bool = False, rank: int | None = None
) -> Callable[[], None]:
    """Return a step of expert repair, an eighth of the experts, layers checkpointed."""
    moe = discover(model)
    slices = ExpertSlices(moe, _chosen(moe), rank=rank)
    config = AlignConfig(optimizer_on_cpu=optimizer_on_cpu)
    optimizer = adamw([(slices.parameters(), 1.0)], lr=1e-5, config=config)

    def work() -> None:
        with slices, checkpointed(model):
            learned_half(model, ids).backward()
        nn.utils.clip_grad_norm_(slices.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def audit(model: Any, ids: Tensor) -> Callable[[], None]:
    """Return the two readings of a replay: by the base model, then by one with an eighth of other experts."""
    moe = discover(model)
    chosen = moe.by_layer(_chosen(moe))
    rows = {layer.experts_name: chosen[row] for row, layer in enumerate(moe.layers)}
    pieces = [
        Piece(f"{name}.{key}", rows[name], 1.5 * tensor.detach()[rows[name]])
        for name, experts in ((layer.experts_name, layer.experts) for layer in moe.layers)
        for key, tensor in experts.named_parameters()
    ]
    changes = difference(moe, pieces, experts=_chosen(moe))

    def work() -> None:
        with torch.no_grad(), changes.mixed(()):
            with record(moe, model) as trace:
                model(input_ids=ids, use_cache=False, logits_to_keep=1)
            changes.become(changes.components)
            with replay(moe, trace):
                model(input_ids=ids, use_cache=False, logits_to_keep=1)

    return work


def _chosen(moe: MoeMap) -> list[ExpertId]:
    count = max(1, round(_SHARE * moe.num_experts))
    return [ExpertId(layer.index, expert) for layer in moe.layers for expert in range(count)]


def full(model: Any, ids: Tensor) -> Callable[[], None]:
    """Return a step of full fine-tuning in pure bf16 with checkpointed layers: its smallest form."""
    model.requires_grad_(True)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def work() -> None:
        with checkpointed(model):
            learned_half(model, ids).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


@dataclass(frozen=True)
class Stage:
    """Hold how a stage is measured.

    Attributes:
        make: (model, ids) -> the work of one step.
        passes: Times the multiplications of a forward that it needs at least: align leaves out the gradients
            of frozen weights and runs its layers twice, as full does.
        around: What is open meanwhile.
    """

    make: Callable[[Any, Tensor], Callable[[], None]]
    passes: float
    around: Callable[[Any], AbstractContextManager[None]] = lambda model: nullcontext()


STAGES = {
    "detect": Stage(detect, 1.0),
    "align": Stage(align, 3.0 + _SHARE),
    "align, changes of rank 8": Stage(partial(align, rank=8), 3.0),
    "align, 8-bit base, moments on the CPU": Stage(
        partial(align, optimizer_on_cpu=True),
        3.0 + _SHARE,
        around=lambda model: low_bit_experts(discover(model)),
    ),
    "audit, a replay": Stage(audit, 2.0),
    "full fine-tuning": Stage(full, 4.0),
}


def measure(name: str, model: Any, ids: Tensor, *, flops: float) -> dict[str, Any]:
    """Return tokens per second, peak bytes and share of the ceiling of a stage, or where it died."""
    stage = STAGES[name]
    device = ids.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with stage.around(model):
            seconds = best_seconds(stage.make(model, ids), device, repeats=2)
    except torch.OutOfMemoryError as error:
        return {"died": str(error).splitlines()[0], "peak_bytes": torch.cuda.max_memory_allocated(device)}
    per_token = 2 * active_values(model)
    return {
        "tokens_per_second": ids.numel() / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "share_of_ceiling": stage.passes * per_token * ids.numel() / seconds / flops,
    }


def active_values(model: Any) -> int:
    """Count the weights one token is multiplied with, scores of the vocabulary left out."""
    moe = discover(model)
    routed = sum(p.numel() for layer in moe.layers for p in layer.experts.parameters())
    ends = model.get_input_embeddings().weight.numel() + model.get_output_embeddings().weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    return int(total - ends - routed * (1 - moe.top_k / moe.num_experts))


def run(*, tiny: bool) -> dict[str, Any]:
    """Measure every stage of every model for as long as the time allows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    flops = ceiling(device, side=256 if tiny else 8192)
    shape = (2, 32) if tiny else (8, 1024)
    results: dict[str, dict[str, Any]] = {}
    for model_name, config in configs(tiny=tiny).items():
        results[model_name] = {}
        for stage in STAGES:
            if time.perf_counter() - started > _SECONDS:
                results[model_name][stage] = {"left_out": f"{_SECONDS} s were over"}
                continue
            # A fresh model each time, so that no stage pays for what another left behind.
            model = random_model(config, device)
            ids = torch.randint(3, config.vocab_size, shape, device=device)
            results[model_name][stage] = measure(stage, model, ids, flops=flops)
            del model
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "machine": name,
        "torch": torch.__version__,
        "tokens_a_step": shape[0] * shape[1],
        "bf16_ceiling_flops": flops,
        "models": results,
    }


def main() -> None:
    """Write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small dimensions, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="where the figures go")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; add --tiny to see that it runs")
    options.out.write_text(json.dumps(run(tiny=options.tiny), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

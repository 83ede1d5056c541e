"""Estimate what each stage of a run needs on this machine, before hours depend on it.

Counts come from the model's shapes; speeds are measured for a moment on the device. They are rough, within a
factor of three on most machines, and say so where they are shown.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rasa_moe.errors import ModelError
from rasa_moe.moe.attention import attention_projections
from rasa_moe.moe.layers import MoeMap, expert_tensor_names
from rasa_moe.moe.quantised import BLOCK

# Of a run like the paper's: what the numbers below are for.
_PROMPT_TOKENS, _ANSWER_TOKENS = 256, 128
_COLLECTED, _PAIRS, _EPOCHS, _EVALUATED, _AUDITED = 800, 200, 3, 2000, 2000
_BATCH_SEQUENCES = 32
# A pair, its refused request, four harmless conversations and a refusal half-way; tokens of one pass.
_SEQUENCES_A_PAIR, _TOKENS_A_PASS = 7, 2048
_SELECTED_SHARE = 0.125
_ATTENTION_RANK = 8
# A trained value: fp32 master, gradient and AdamW's two moments.
_BYTES_TRAINED, _BYTES_OF_MOMENTS = 16, 8
# Kept for backward, in model widths per token and layer: attention, norms and residuals.
_WIDTHS_KEPT = 16
# Scores of the whole vocabulary in fp32: the model's own, their logarithms and their gradients.
_LOGITS_TO_LEARN = 3
_FORWARD_AND_BACKWARD = 3
ASSUMED = (
    f"of a run with {_COLLECTED} prompts of {_PROMPT_TOKENS} tokens answered in {_ANSWER_TOKENS}, "
    f"{_PAIRS} pairs for {_EPOCHS} rounds, {_EVALUATED} prompts evaluated"
)
_PROBE_SIDE = 768
_PROBE_SECONDS = 0.1


@dataclass(frozen=True)
class Size:
    """Hold the sizes of a model.

    Attributes:
        num_parameters: All values.
        num_routed: Values in routed experts.
        num_thin: Values of a change of rank 1 in every matrix of them.
        num_attention: Values of the projections of attention.
        num_thin_attention: Values of a change of rank 1 in every one of these.
        num_router: Values in routers.
        num_active: Values that one token meets: all but the experts it is not sent to, and the embedding.
        itemsize: Bytes of one value in the working type.
        activation_bytes: Bytes kept for backward per token.
        checkpointed_bytes: The same where layers are checkpointed: their inputs, and one layer whole.
        cache_bytes: Bytes of KV cache per token, at most.
        logit_bytes: Bytes of the scores of the vocabulary per token, in fp32.
    """

    num_parameters: int
    num_routed: int
    num_thin: int
    num_attention: int
    num_thin_attention: int
    num_router: int
    num_active: int
    itemsize: int
    activation_bytes: int
    checkpointed_bytes: int
    cache_bytes: int
    logit_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in the working type."""
        return self.num_parameters * self.itemsize


@dataclass(frozen=True)
class Speed:
    """Hold operations and bytes per second of a device, and its free bytes (None where unknown)."""

    flops: float
    bandwidth: float
    free_bytes: int | None


@dataclass(frozen=True)
class StageNeed:
    """Hold one stage's estimate: its name, bytes at the peak and seconds."""

    stage: str
    peak_bytes: int
    seconds: float


def size_of(moe: MoeMap, dtype: torch.dtype) -> Size:
    """Count the values of a model; it may be on the meta device."""
    model = moe.model
    config: Any = model.config.get_text_config()
    layers = moe.layers
    per_layer = [
        sum(layer.experts.get_parameter(name).numel() for name in expert_tensor_names(layer.experts))
        for layer in layers
    ]
    num_routed = sum(per_layer)
    num_router = sum(p.numel() for layer in layers for p in layer.router.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    share = moe.top_k / moe.num_experts
    embedding = model.get_input_embeddings().weight.numel()
    width = int(config.hidden_size)
    attention = _attention_weights(moe)
    inner = per_layer[0] // moe.num_experts // (3 * width)
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    head_width = int(getattr(config, "head_dim", None) or width // int(config.num_attention_heads))
    depth = int(config.num_hidden_layers)
    kept = depth * _WIDTHS_KEPT * width + len(layers) * moe.top_k * (2 * width + 4 * inner)
    return Size(
        num_parameters=total,
        num_routed=num_routed,
        num_thin=sum(_thin_values(layer.experts) for layer in layers),
        num_attention=sum(weight.numel() for weight in attention),
        num_thin_attention=sum(sum(weight.shape) for weight in attention),
        num_router=num_router,
        num_active=total - embedding - int(num_routed * (1 - share)),
        itemsize=dtype.itemsize,
        activation_bytes=kept * dtype.itemsize,
        checkpointed_bytes=(depth * width + kept // depth) * dtype.itemsize,
        cache_bytes=2 * depth * heads * head_width * dtype.itemsize,
        logit_bytes=int(config.vocab_size) * torch.float32.itemsize,
    )


def _thin_values(experts: torch.nn.Module) -> int:
    """Count the values of a change of rank 1: inputs and outputs of each expert's matrices."""
    tensors = (experts.get_parameter(name) for name in expert_tensor_names(experts))
    return sum(len(tensor) * sum(tensor.shape[1:]) for tensor in tensors if tensor.dim() == 3)


def _attention_weights(moe: MoeMap) -> list[torch.Tensor]:
    try:
        return [projection.weight for projection in attention_projections(moe).values()]
    except ModelError:
        return []


def measure(device: torch.device, dtype: torch.dtype) -> Speed:
    """Multiply and copy matrices for a moment."""
    square = torch.ones(_PROBE_SIDE, _PROBE_SIDE, device=device, dtype=dtype)
    flops = 2 * _PROBE_SIDE**3 * _repeats_per_second(lambda: square @ square, device)
    block = torch.ones(16 << 20, device=device, dtype=torch.uint8)
    bandwidth = 2 * block.numel() * _repeats_per_second(block.clone, device)
    return Speed(flops=flops, bandwidth=bandwidth, free_bytes=free_memory(device))


def _repeats_per_second(work: Any, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    start, repeats = time.perf_counter(), 0
    while time.perf_counter() - start < _PROBE_SECONDS:
        work()
        wait()
        repeats += 1
    return repeats / (time.perf_counter() - start)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes a process may still take on a device; None where that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    # In a container the group's limit counts, not the machine's memory.
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        free = min(free, int(text) - int(used.read_text(encoding="ascii")))
    return max(free, 0)


def needs(size: Size, speed: Speed) -> tuple[StageNeed, ...]:
    """Estimate peak memory and time of the stages that use the model.

    The run is that of `ASSUMED`, with an eighth of the experts, two models evaluated and 2,000 more answers
    for the audit.
    """
    tokens = _PROMPT_TOKENS + _ANSWER_TOKENS
    cache = _BATCH_SEQUENCES * tokens * size.cache_bytes
    answering = size.weight_bytes + cache
    reading = size.weight_bytes + _BATCH_SEQUENCES * tokens * size.checkpointed_bytes
    routed = _TOKENS_A_PASS * (size.activation_bytes + size.logit_bytes)
    routers = size.weight_bytes + size.num_router * _BYTES_TRAINED + routed
    learning = _EPOCHS * _SEQUENCES_A_PAIR * _FORWARD_AND_BACKWARD * _seconds_to_read(size, speed, _PAIRS)
    return (
        StageNeed("collect", answering, _seconds_to_answer(size, speed, _COLLECTED)),
        StageNeed("routers", routers, learning),
        # Both halves of a pair, under both routings.
        StageNeed("detect", reading, 4 * _seconds_to_read(size, speed, _PAIRS)),
        StageNeed("repair", repair_bytes(size), learning),
        StageNeed("evaluate", answering, 2 * _seconds_to_answer(size, speed, _EVALUATED)),
        # Each mixture of base and repaired model has a cache of its own.
        StageNeed(
            "audit", answering + repaired_bytes(size) + cache, _seconds_to_answer(size, speed, _AUDITED)
        ),
    )


def repaired_bytes(size: Size) -> int:
    """Estimate the bytes of all that the repair of an eighth of the experts changes, in the working type."""
    return (int(size.num_routed * _SELECTED_SHARE) + size.num_attention + size.num_router) * size.itemsize


def repair_bytes(
    size: Size,
    *,
    gradient_checkpointing: bool = False,
    optimizer_on_cpu: bool = False,
    base_bits: int | None = None,
    expert_rank: int | None = None,
) -> int:
    """Estimate the bytes at the peak of repairing an eighth of the experts, with settings that spare some.

    Attention learns changes of rank 8 beside them.
    """
    a_value = _BYTES_TRAINED - (_BYTES_OF_MOMENTS if optimizer_on_cpu else 0)
    slices = int(size.num_routed * _SELECTED_SHARE) * a_value
    if expert_rank is not None:
        # Beside what is trained stands a copy of the rows, as the model has them.
        slices = int(
            _SELECTED_SHARE * (size.num_thin * expert_rank * a_value + size.num_routed * size.itemsize)
        )
    kept = size.checkpointed_bytes if gradient_checkpointing else size.activation_bytes
    learnt = _TOKENS_A_PASS * (kept + _LOGITS_TO_LEARN * size.logit_bytes)
    base = size.weight_bytes
    if base_bits is not None:
        base -= int(size.num_routed * (size.itemsize - _bytes_of_weight(base_bits, size.itemsize)))
    # The weights as they are fill the device before they are made integers, and afterwards.
    attention = size.num_thin_attention * _ATTENTION_RANK * a_value
    return max(size.weight_bytes, base + slices + attention + learnt)


def _bytes_of_weight(bits: int, itemsize: int) -> float:
    """Return the bytes of one weight held in few bits, its share of the scales included."""
    return bits / 8 + (itemsize / BLOCK if bits == 4 else 0.0)


def _seconds_to_answer(size: Size, speed: Speed, num_prompts: int) -> float:
    """Time of reading prompts (arithmetic) and writing answers (arithmetic, or fetching the weights)."""
    per_token = 2 * size.num_active / speed.flops
    reading = num_prompts * _PROMPT_TOKENS * per_token
    # A batch of answers meets nearly every expert, so every weight is fetched once a step.
    step = max(_BATCH_SEQUENCES * per_token, size.weight_bytes / speed.bandwidth)
    return reading + num_prompts / _BATCH_SEQUENCES * _ANSWER_TOKENS * step


def _seconds_to_read(size: Size, speed: Speed, num_texts: int) -> float:
    """Time of one forward pass over prompts with their answers."""
    return num_texts * (_PROMPT_TOKENS + _ANSWER_TOKENS) * 2 * size.num_active / speed.flops

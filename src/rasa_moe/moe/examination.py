"""Look at a model before any work, without its weights: can it be repaired, and if not, why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.utils import cached_file

from rasa_moe.errors import ModelError
from rasa_moe.moe import budget
from rasa_moe.moe.checkpoint import DTYPES, Checkpoint, empty_model, sources_of
from rasa_moe.moe.families import NO_LIVE_REPLAY, NO_SILENCE, ROUTER_WEIGHS_MORE, SCORING
from rasa_moe.moe.layers import MoeMap, discover

Level = Literal["fine", "note", "stop"]
_WORKING_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SCORING_WORDS = {
    "softmax": "softmax",
    "topk_softmax": "softmax after top-k",
    "sigmoid": "sigmoid",
    "probabilities": "softmax, returned as probabilities",
}


@dataclass(frozen=True)
class Finding:
    """Say what was looked at, what was found, and whether a run can go on from there."""

    subject: str
    text: str
    level: Level = "fine"


def examine_model(
    path: str, *, dtype: str, device: str, trust_remote_code: bool, revision: str | None
) -> Iterator[Finding]:
    """Yield what the config and the headers of the checkpoint say, one after the other.

    Args:
        path: Model directory, or a Hugging Face name.
        dtype: "auto", "float32", "bfloat16" or "float16", the working type.
        device: "auto" or a torch device.
        trust_remote_code: Whether code shipped with the model may run.
        revision: Branch, tag or commit on the hub.
    """
    try:
        model = empty_model(path, trust_remote_code=trust_remote_code, revision=revision)
        moe = discover(model)
    except ModelError as error:
        yield Finding("experts", str(error), "stop")
        return
    yield Finding("model", f"{model.config.model_type}, {_count(_num_values(model))} parameters")
    yield Finding("experts", moe.summary())
    yield Finding("routing", _routing(moe))
    yield from _family(moe)
    yield from _checkpoint(model, path, revision=revision)
    yield from _machine(moe, dtype=dtype, device=device)


def _num_values(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _routing(moe: MoeMap) -> str:
    scoring = ", ".join(sorted({_SCORING_WORDS[layer.scoring] for layer in moe.layers}))
    shared = "with" if any(layer.has_shared_experts for layer in moe.layers) else "without"
    dense = f"dense layers {', '.join(map(str, moe.dense_layers))}" if moe.dense_layers else "no dense layers"
    return f"top {moe.top_k} of {moe.num_experts}, {scoring} scores, {shared} shared experts, {dense}"


def _family(moe: MoeMap) -> Iterator[Finding]:
    """Say what this family cannot do."""
    kind = moe.model_type
    if kind not in SCORING:
        yield Finding(
            "family",
            f"'{kind}' is not among the tested families; its router is measured when the weights are loaded",
            "note",
        )
    limits = {
        "align.fixed_routing=replay with live weights": NO_LIVE_REPLAY,
        "silencing experts": NO_SILENCE,
        "exact replay of another model's routing": ROUTER_WEIGHS_MORE,
    }
    for what, families in limits.items():
        if kind in families:
            yield Finding("limit", f"{what} will not work: {families[kind]}", "note")


def _checkpoint(model: PreTrainedModel, path: str, *, revision: str | None) -> Iterator[Finding]:
    """Hold the stored tensors against those the model needs."""
    quantised: Any = getattr(model.config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        yield Finding(
            "weights", f"they are quantised ({method}); give a checkpoint in bfloat16 or float32", "stop"
        )
        return
    folder = _folder(path, revision=revision)
    if folder is None or not any(folder.glob("*.safetensors*")):
        if Path(path).is_dir():
            yield Finding("weights", f"{path} holds no safetensors files", "stop")
        else:
            yield Finding("weights", "not on this machine yet; the first run downloads them", "note")
        return
    try:
        stored = Checkpoint.open(folder)
    except ModelError as error:
        yield Finding("weights", str(error), "stop")
        return
    found = sources_of(model, stored.tensors)
    types = sorted({tensor.dtype for tensor in stored.tensors.values()})
    if types and set(types).isdisjoint(DTYPES):
        yield Finding("weights", f"they are stored as {', '.join(types)}, which cannot be trained", "stop")
    if found.missing:
        shown = (
            f"{len(found.missing)} of the model's tensors are not in the checkpoint ({found.missing[0]}...)"
        )
        yield Finding("weights", f"{shown}; get the whole checkpoint", "stop")
        return
    if found.mismatched:
        shown = f"{len(found.mismatched)} of the model's tensors have another size in the checkpoint"
        yield Finding("weights", f"{shown} ({found.mismatched[0]}...); its config is another model's", "stop")
        return
    text = f"{len(stored.tensors)} tensors, {_bytes(stored.num_bytes)} as {', '.join(types)}, complete"
    yield Finding("weights", text)
    if found.unexpected:
        yield Finding("weights", f"{len(found.unexpected)} more tensors are left out", "note")


def _folder(path: str, *, revision: str | None) -> Path | None:
    """Return the folder that holds the files, without fetching anything."""
    if Path(path).is_dir():
        return Path(path)
    config = cached_file(
        path,
        "config.json",
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(config).parent if config else None


def _machine(moe: MoeMap, *, dtype: str, device: str) -> Iterator[Finding]:
    """Estimate memory and time of every stage."""
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(automatic if device == "auto" else device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        problem = (str(error).splitlines() or [""])[0]
        yield Finding("machine", f"the device '{device}' cannot be used ({problem})", "stop")
        return
    if dtype not in {"auto", *_WORKING_DTYPES}:
        allowed = ", ".join(_WORKING_DTYPES)
        yield Finding("machine", f"'{dtype}' is no type to work in; give auto, {allowed}", "stop")
        return
    working = _working_dtype(moe.model, dtype, place)
    size = budget.size_of(moe, working)
    speed = budget.measure(place, working)
    free = "unknown" if speed.free_bytes is None else _bytes(speed.free_bytes)
    name = str(working).removeprefix("torch.")
    yield Finding(
        "machine", f"{place}, {free} free, {speed.flops / 1e9:,.0f} GFLOP/s in {name} (measured for a moment)"
    )
    yield Finding("estimates", budget.ASSUMED)
    for need in budget.needs(size, speed):
        is_too_much = speed.free_bytes is not None and need.peak_bytes > speed.free_bytes
        text = f"about {_bytes(need.peak_bytes)} and {_duration(need.seconds)}"
        advice = _advice(need.stage, size, speed, place) if is_too_much else ""
        yield Finding(need.stage, text + advice, "note" if is_too_much else "fine")


# What spares memory in repair, the cheapest in time and in exactness first.
_CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
_SPARING: tuple[dict[str, Any], ...] = (
    _CHECKPOINTED,
    {**_CHECKPOINTED, "expert_rank": 8},
    {**_CHECKPOINTED, "base_bits": 8},
    {**_CHECKPOINTED, "base_bits": 8, "optimizer_on_cpu": True},
    {**_CHECKPOINTED, "base_bits": 4, "optimizer_on_cpu": True},
)


def _advice(stage: str, size: budget.Size, speed: budget.Speed, place: torch.device) -> str:
    free = speed.free_bytes or 0
    if size.weight_bytes > free and size.itemsize > 2 and size.weight_bytes // 2 < free:
        return ": more than is free; set dtype: bfloat16"
    if size.weight_bytes > free:
        return ": more than is free, even for the weights alone; use a larger machine"
    if stage == "repair" and place.type != "cpu":
        for chosen in _SPARING:
            if (peak := budget.repair_bytes(size, **chosen)) <= free:
                settings = " and ".join(
                    f"align.{name}: {str(value).lower()}" for name, value in chosen.items()
                )
                return f": more than is free; about {_bytes(peak)} with {settings}"
    if stage in {"repair", "routers"}:
        return ": more than is free; set align.gradient_checkpointing: true or a smaller align.batch_tokens"
    if stage == "detect":
        return ": more than is free; use a larger machine"
    part = "evaluate" if stage == "audit" else stage
    return f": more than is free; set a smaller {part}.batch_tokens"


def _working_dtype(model: PreTrainedModel, dtype: str, place: torch.device) -> torch.dtype:
    """Return the type a run would work in: on a CPU float32, elsewhere the type of the checkpoint."""
    if dtype != "auto":
        return _WORKING_DTYPES[dtype]
    stated = getattr(model.config, "dtype", None)
    return torch.float32 if place.type == "cpu" or not isinstance(stated, torch.dtype) else stated


def _count(number: int) -> str:
    return f"{number / 1e9:,.1f} G" if number >= 1e9 else f"{number / 1e6:,.1f} M"


def _bytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""Recording and replaying routing beside a plain forward, and AAD beside a loop over tokens and layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rasa_moe.bench.figures import Figure, Result, interleaved, ratio
from rasa_moe.bench.models import SIZES, Dimensions, olmoe, token_ids
from rasa_moe.detect.aad import activation_discrepancy
from rasa_moe.moe import MoeMap, count_activations, discover, record, replay

RECORD, DETECT = "record", "detect"
_BATCH_TOKENS = 8192


def bench_record(size: str) -> Result:
    """Measure forwards that are counted, recorded and replayed against plain ones."""
    dimensions = SIZES[size]
    rows, length, repeats = (2, 16, 3) if size == "tiny" else (2, 64, 9)
    model, ids = olmoe(dimensions), token_ids(dimensions, rows=rows, length=length)
    moe = discover(model)

    def plain() -> None:
        model(input_ids=ids, use_cache=False)

    def inside(context: Any) -> None:
        with context:
            plain()

    with torch.inference_mode():
        with record(moe, model) as trace:
            plain()
        seconds = interleaved(
            {
                "plain": plain,
                "counted": lambda: inside(count_activations(moe, model)),
                "recorded": lambda: inside(record(moe, model)),
                "replayed": lambda: inside(replay(moe, trace)),
            },
            repeats=repeats,
        )
    counts = 8 * rows * dimensions.layers * dimensions.experts
    kept = 12 * rows * length * dimensions.layers * dimensions.top_k
    floors = {"counted": f"keeps {counts:,} bytes at any length", "recorded": f"keeps {kept:,} bytes"}
    return Result(
        name=RECORD,
        conditions=f"{dimensions}, fp32; {rows} x {length} tokens; {repeats} interleaved rounds",
        figures=tuple(
            Figure(
                bench=RECORD,
                name=f"forward {what} / plain",
                value=ratio(seconds[what], seconds["plain"]),
                unit="x",
                target=1.05,
                floor=floors.get(what, ""),
            )
            for what in ("counted", "recorded", "replayed")
        ),
    )


def bench_detect(size: str) -> Result:
    """Measure AAD over pairs against one text at a time, counted token by token and layer by layer."""
    dimensions = Dimensions(hidden=32, width=8, heads=2, vocabulary=512)
    pairs, length, repeats = {"real": (400, 300, 2), "quick": (40, 300, 3), "tiny": (2, 20, 2)}[size]
    model, ids = olmoe(dimensions), token_ids(dimensions, rows=2 * pairs, length=length)
    moe = discover(model)
    with torch.inference_mode():
        chosen = chosen_experts(model, moe, ids)
        whole = interleaved(
            {
                "batched": lambda: discrepancy(rates_batched(model, moe, ids)),
                "loop": lambda: discrepancy(rates_by_loop(chosen_one_by_one(model, moe, ids), dimensions)),
                "scatter alone": lambda: rates_by_scatter(chosen, dimensions),
                "loop alone": lambda: rates_by_loop(chosen, dimensions),
            },
            repeats=repeats,
        )
    assignments = 2 * pairs * length * dimensions.layers * dimensions.top_k
    return Result(
        name=DETECT,
        conditions=(
            f"{pairs} pairs of {length} tokens, {dimensions} (narrow, so that counting and not the "
            f"forward is compared), fp32; {repeats} interleaved rounds"
        ),
        figures=(
            Figure(
                bench=DETECT,
                name="throughput with its forward / loop over tokens and layers with its forward",
                value=ratio(whole["loop"], whole["batched"]),
                unit="x",
                target=50,
                at_least=True,
                floor=f"{assignments:,} counts to add, {8 * assignments / 1e6:.0f} MB to read",
            ),
            Figure(
                bench=DETECT,
                name="throughput of counting alone / loop alone",
                value=ratio(whole["loop alone"], whole["scatter alone"]),
                unit="x",
                target=50,
                at_least=True,
            ),
        ),
    )


def discrepancy(rates: Tensor) -> Tensor:
    """Return AAD (L,E) of rates (2N,L,E) whose first half are the jailbreaks."""
    return activation_discrepancy(*rates.chunk(2))


def rates_batched(model: Any, moe: MoeMap, ids: Tensor) -> Tensor:
    """Return activation rates (B,L,E) as the stage detect computes them."""
    with count_activations(moe, model) as counts:
        for part in _batches(ids):
            model(input_ids=part, use_cache=False)
    return counts.rates()


def chosen_experts(model: Any, moe: MoeMap, ids: Tensor) -> Tensor:
    """Return the experts of every token, (L,B,S,K) int64, from batched forwards."""
    with record(moe, model) as trace:
        for part in _batches(ids):
            model(input_ids=part, use_cache=False)
    return torch.stack([trace.ids[layer.name].view(*ids.shape, -1) for layer in moe.layers])


def chosen_one_by_one(model: Any, moe: MoeMap, ids: Tensor) -> Tensor:
    """Return the same, one text a forward."""
    return torch.cat([chosen_experts(model, moe, text) for text in torch.split(ids, 1)], dim=1)


def rates_by_loop(chosen: Tensor, dimensions: Dimensions) -> Tensor:
    """Return activation rates (B,L,E) by visiting every token of every layer.

    Args:
        chosen: (L,B,S,K) int64.
        dimensions: Number of experts.
    """
    layers, texts, length, _ = chosen.shape
    rates = torch.zeros(texts, layers, dimensions.experts)
    for text in range(texts):
        for token in range(length):
            for layer in range(layers):
                rates[text, layer, chosen[layer, text, token]] += 1
    return rates / length


def rates_by_scatter(chosen: Tensor, dimensions: Dimensions) -> Tensor:
    """Return activation rates (B,L,E) by the one scattered addition a layer that `count_activations` does.

    Args:
        chosen: (L,B,S,K) int64.
        dimensions: Number of experts.
    """
    layers, texts, length, _ = chosen.shape
    counts = torch.zeros(texts, layers, dimensions.experts, dtype=torch.int64)
    for layer in range(layers):
        ids = chosen[layer].flatten(1)
        counts[:, layer].scatter_add_(1, ids, torch.ones_like(ids))
    return counts / length


def _batches(ids: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = torch.split(ids, max(1, _BATCH_TOKENS // ids.shape[1]))
    return parts

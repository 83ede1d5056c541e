"""The router step with targets taken once beside the form that forwards both halves of a pair every step."""

from __future__ import annotations

from typing import Any

import torch

from rasa_moe.align.batches import TrainingBatch
from rasa_moe.align.consistency import RoutingConsistency
from rasa_moe.align.losses import routing_divergence
from rasa_moe.bench.figures import Figure, Result, interleaved, ratio
from rasa_moe.bench.models import SIZES, Dimensions, olmoe, token_ids
from rasa_moe.config import AlignConfig
from rasa_moe.data.chats import EncodedChat, collate
from rasa_moe.moe import MoeMap, TrainableRouters, discover, watch_routers

NAME = "routers"


def bench(size: str) -> Result:
    """Measure forward and backward of one step of both forms, alone and with the targets of its batch."""
    dimensions = SIZES[size]
    pairs, length, repeats = (2, 16, 3) if size == "tiny" else (1, 96, 5)
    model = olmoe(dimensions)
    moe, batch = discover(model), pairs_batch(dimensions, pairs=pairs, length=length)
    config = AlignConfig(router_retain_weight=0.0)
    routers = TrainableRouters(moe)

    def consistency() -> RoutingConsistency:
        return RoutingConsistency(model, moe, [batch], config=config)

    with routers:
        ready = consistency()
        seconds = interleaved(
            {
                "two forwards": lambda: torch.autograd.backward(two_forwards(model, moe, batch)),
                "step": lambda: torch.autograd.backward(one_loss(ready, batch)),
                "step and targets": lambda: torch.autograd.backward(one_loss(consistency(), batch)),
            },
            repeats=repeats,
        )
    layers = dimensions.layers
    return Result(
        name=NAME,
        conditions=(
            f"{dimensions}, fp32; {pairs} pair(s) of {length} tokens a step, the paper's form "
            f"(router_retain_weight 0), optimiser left out; {repeats} interleaved rounds"
        ),
        figures=(
            _figure(
                "step with targets at hand", seconds["step"], seconds, _floor(layers, with_targets=False)
            ),
            _figure(
                "step with the targets of its batch (one epoch)",
                seconds["step and targets"],
                seconds,
                _floor(layers, with_targets=True),
            ),
        ),
    )


def _figure(name: str, ours: list[float], seconds: dict[str, list[float]], floor: str) -> Figure:
    value = ratio(ours, seconds["two forwards"])
    return Figure(bench=NAME, name=f"{name} / two forwards", value=value, unit="x", target=0.6, floor=floor)


def _floor(layers: int, *, with_targets: bool) -> str:
    """Count passes through the experts of a layer; nothing after the last router decides its routing."""
    forward, backward = layers - 1, layers - 1
    ours = forward * (2 if with_targets else 1) + backward
    return f"{ours} of {2 * layers + backward} passes through a layer's experts"


def one_loss(consistency: RoutingConsistency, batch: TrainingBatch) -> torch.Tensor:
    """Return the loss of a batch that is small enough for one forward pass."""
    ((loss, _),) = consistency(batch, 0)
    return loss


def two_forwards(model: Any, moe: MoeMap, batch: TrainingBatch) -> torch.Tensor:
    """Return the loss of a step that forwards plain requests and jailbreaks to the end."""
    with torch.no_grad(), watch_routers(moe, model) as watch:
        plain = batch.part("anchor")
        model(input_ids=plain.input_ids, attention_mask=plain.attention_mask, use_cache=False)
        span = plain.spans[AlignConfig().router_span]
        target = watch.mean_probabilities(span)
    with watch_routers(moe, model) as watch:
        wrapped = batch.part("jailbreak")
        model(input_ids=wrapped.input_ids, attention_mask=wrapped.attention_mask, use_cache=False)
    routing = watch.mean_probabilities(wrapped.spans[AlignConfig().router_span])
    return routing_divergence(target, routing, kind=AlignConfig().kl)


def pairs_batch(dimensions: Dimensions, *, pairs: int, length: int) -> TrainingBatch:
    """Return a batch of random pairs, the second half of each text an answer."""
    texts = token_ids(dimensions, rows=2 * pairs, length=length).tolist()
    chats = collate([EncodedChat(text, prompt_length=length // 2) for text in texts], 0, side="right")
    rows = torch.arange(2 * pairs)
    return TrainingBatch(chats=chats, parts={"jailbreak": rows[:pairs], "anchor": rows[pairs:]})

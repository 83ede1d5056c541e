"""Measure every expert's discrepancy over the collected pairs and choose the safety-critical ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rasa_moe.config import DetectConfig
from rasa_moe.data.chats import SPANS_OF_PROMPT, EncodedChat, collate, encode_chat, length_bucketed
from rasa_moe.data.rows import Pair
from rasa_moe.detect.aad import (
    DiscrepancyInterval,
    activation_discrepancy,
    bootstrap_interval,
    select_experts,
    selection_score,
)
from rasa_moe.distributed import current
from rasa_moe.errors import ConfigError
from rasa_moe.moe import ExpertId, ExpertPatch, MoeMap, call_for_routing, count_activations
from rasa_moe.progress import Progress, no_progress


@dataclass(frozen=True, eq=False, kw_only=True)
class Detection:
    """Hold what detection found.

    Attributes:
        delta: (L,E) float64, AAD of every expert.
        score: (L,E) float64, what the experts were ranked by: AAD with the plain requests weighted.
        anchor_weight: That weight; 1 makes the score AAD.
        interval: What resampling the goals says about it.
        jailbreak_rates: (L,E) float64, mean activation rate on the jailbreaks.
        anchor_rates: (L,E) float64, the same on the plain requests.
        experts: The chosen experts, strongest first.
    """

    delta: Tensor
    score: Tensor
    anchor_weight: float
    interval: DiscrepancyInterval
    jailbreak_rates: Tensor
    anchor_rates: Tensor
    experts: tuple[ExpertId, ...]


def detect(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    pairs: Sequence[Pair],
    config: DetectConfig,
    routing: ExpertPatch | None = None,
    both_routings: bool = True,
    seed: int = 0,
    batch_tokens: int = 8192,
    progress: Progress = no_progress,
) -> Detection:
    """Compute AAD with its intervals and select experts.

    Each half of a pair is read with the answer the base model gave: the harmful one after the jailbreak, the
    refusal after the plain request.

    Deviation: where routing has been made consistent already, activation rates are the mean over the base
        model's routing and the consistent one, since repair has to hold under both.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        moe: Its map.
        pairs: N pairs.
        config: Span, budget or threshold, resamples.
        routing: Routers that send jailbreaks where their plain requests go, of `make_consistent`; None reads
            the base model alone.
        both_routings: False reads the model with those routers alone.
        seed: Of the bootstrap.
        batch_tokens: Tokens of one forward call, padding included.
        progress: Called after every batch.

    Raises:
        ConfigError: The budget exceeds the number of experts, or no expert passes the threshold.
    """
    chats = [encode_chat(tokenizer, pair.jailbreak, pair.jailbreak_answer) for pair in pairs]
    chats += [encode_chat(tokenizer, pair.anchor, pair.anchor_answer) for pair in pairs]
    rates = rates_under(
        model,
        tokenizer,
        moe,
        routing=routing,
        both_routings=both_routings,
        chats=chats,
        span=config.span,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    jailbreak_rates, anchor_rates = rates[: len(pairs)], rates[len(pairs) :]
    budget = expert_budget(config, num_experts=moe.num_layers * moe.num_experts)
    score = selection_score(jailbreak_rates, anchor_rates, anchor_weight=config.anchor_weight)
    chosen = _select(score, config, budget=budget)
    interval = bootstrap_interval(
        jailbreak_rates,
        anchor_rates,
        budget=budget,
        threshold=config.threshold,
        anchor_weight=config.anchor_weight,
        goals=[pair.goal for pair in pairs],
        resamples=config.bootstrap,
        seed=seed,
    )
    return Detection(
        delta=activation_discrepancy(jailbreak_rates, anchor_rates),
        score=score,
        anchor_weight=config.anchor_weight,
        interval=interval,
        jailbreak_rates=jailbreak_rates.double().mean(dim=0),
        anchor_rates=anchor_rates.double().mean(dim=0),
        experts=tuple(ExpertId(moe.layers[row].index, expert) for row, expert in chosen),
    )


def _select(score: Tensor, config: DetectConfig, *, budget: int | None) -> list[tuple[int, int]]:
    """Choose experts by the budget or the threshold; none at all is an error."""
    chosen = select_experts(score, budget=budget, threshold=config.threshold)
    if not chosen:
        raise ConfigError(
            f"No expert's score exceeds detect.threshold = {config.threshold}; the largest is "
            f"{float(score.max()):.4f}, so lower the threshold or set a budget."
        )
    return chosen


def rates_under(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    routing: ExpertPatch | None,
    both_routings: bool,
    **reading: Any,
) -> Tensor:
    """Return `activation_rates`, (N,L,E) float32, under the routings that experts are chosen by.

    They are the base model's and that of `routing`, the mean of both; one of them where the other is not
    there or not wanted.
    """
    if routing is None:
        return activation_rates(model, tokenizer, moe, **reading)
    with routing.put_on(model):
        consistent = activation_rates(model, tokenizer, moe, **reading)
    if not both_routings:
        return consistent
    return (consistent + activation_rates(model, tokenizer, moe, **reading)) / 2


def activation_rates(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    chats: Sequence[EncodedChat],
    span: str,
    batch_tokens: int = 8192,
    progress: Progress = no_progress,
) -> Tensor:
    """Return (N,L,E) float32: the share of each chat's span tokens that activate each expert.

    No more is forwarded than that takes: neither scores, nor the last layer's experts, nor, for a span of the
    prompt, the answer.
    """
    if span in SPANS_OF_PROMPT:
        chats = [EncodedChat(chat.input_ids[: chat.prompt_length], chat.prompt_length) for chat in chats]
    batches = length_bucketed([len(chat) for chat in chats], batch_tokens=batch_tokens)
    mine = (world := current()).part(batches)
    order = [index for indices in mine for index in indices]
    with torch.inference_mode(), count_activations(moe, model) as counts:
        done = 0
        for indices in mine:
            batch = collate([chats[index] for index in indices], tokenizer.pad_token_id).to(model.device)
            counts.span = batch.spans[span]
            call_for_routing(moe, model, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            done += len(indices)
            progress("detect", done, len(order))
    return world.in_order(counts.rates().cpu(), order, total=len(chats))


def expert_budget(config: DetectConfig, *, num_experts: int) -> int | None:
    """Turn the configured share or count into a number of experts; None where a threshold decides.

    Raises:
        ConfigError: More experts are asked for than the model has.
    """
    if config.budget is None:
        return None
    budget = max(1, round(config.budget * num_experts)) if isinstance(config.budget, float) else config.budget
    if budget > num_experts:
        raise ConfigError(
            f"detect.budget asks for {budget} experts but the model has {num_experts}; lower it."
        )
    return budget

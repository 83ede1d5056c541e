"""Search for a route on which the model answers harmfully: which experts must be silent?

Routes are compared on the attacker's own pairs by how likely they make the base model's harmful answers; only
the best is measured on the goals of the table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from rasa_moe.data.chats import EncodedChat, collate, length_bucketed
from rasa_moe.errors import ModelError
from rasa_moe.moe import ExpertId, silence
from rasa_moe.moe.spare import Spare
from rasa_moe.reattack.base import Attack, Effort, LeftOut, Measured, Target, measure

RANDOM_SHARE = 0.25


def _run(target: Target, effort: Effort) -> Iterator[Measured | LeftOut]:
    generator = np.random.default_rng(target.seed)
    chosen = target.pairs[: effort.search_pairs]
    if not chosen:
        return
    chats = [target.encode(pair.jailbreak, pair.jailbreak_answer) for pair in chosen]

    def loss(experts: Sequence[ExpertId]) -> float:
        try:
            with silence(target.moe, list(experts)):
                return response_loss(target.model, target.tokenizer, chats, batch_tokens=target.batch_tokens)
        except ModelError:  # the router cannot do without these experts: the worst of routes
            return math.inf

    def measured(setting: str, strength: int, unit: str, experts: Sequence[ExpertId]) -> Measured | LeftOut:
        silenced = silence(target.moe, experts)
        return measure(target, silenced, setting=setting, strength=strength, unit=unit)

    tried = [_random_route(target, generator) for _ in range(effort.route_trials)]
    losses = [loss(route) for route in tried]
    yield measured("best of random routes", len(tried), "routes tried", tried[int(np.argmin(losses))])
    route: list[ExpertId] = []
    for step in range(1, effort.route_steps + 1):
        candidates = _candidates(target, route, generator, limit=effort.route_candidates)
        if not candidates:
            return
        scores = [loss([*route, candidate]) for candidate in candidates]
        route.append(candidates[int(np.argmin(scores))])
        yield measured("greedy search", step, "experts silenced", route)


def _random_route(target: Target, generator: np.random.Generator) -> list[ExpertId]:
    spare = Spare.of(target.moe)
    count = min(round(RANDOM_SHARE * spare.group_size), spare.most)
    return [
        ExpertId(layer.index, first + int(expert))
        for layer in target.moe.layers
        for first in range(0, layer.num_experts, spare.group_size)
        for expert in generator.choice(spare.group_size, size=count, replace=False)
    ]


def _candidates(
    target: Target, route: Sequence[ExpertId], generator: np.random.Generator, *, limit: int
) -> list[ExpertId]:
    spare = Spare.of(target.moe)

    def group(expert: ExpertId) -> tuple[int, int]:
        return expert.layer, expert.expert // spare.group_size

    silent = Counter(group(expert) for expert in route)
    free = [
        expert
        for expert in target.moe.expert_ids()
        if expert not in route and silent[group(expert)] < spare.most
    ]
    drawn = generator.choice(len(free), size=min(limit, len(free)), replace=False) if free else ()
    return [free[int(place)] for place in drawn]


def response_loss(
    model: Any, tokenizer: Any, chats: Sequence[EncodedChat], *, batch_tokens: int = 8192
) -> float:
    """Return the mean cross-entropy, in nats a token, of the answers of chats."""
    total = count = 0.0
    with torch.inference_mode():
        for indices in length_bucketed([len(chat) for chat in chats], batch_tokens=batch_tokens):
            batch = collate([chats[index] for index in indices], tokenizer.pad_token_id).to(model.device)
            logits = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), batch.labels[:, 1:], reduction="sum"
            )
            total += float(losses)
            count += float(batch.spans["response"].sum())
    return total / count


ATTACK = Attack(
    "routes",
    "Search, at random and greedily, for experts to silence; needs the weights and harmful answers.",
    lambda effort: (
        f"{effort.route_trials} random routes; greedy: {effort.route_steps} steps of up to "
        f"{effort.route_candidates} candidates; compared on {effort.search_pairs} of the attacker's pairs"
    ),
    _run,
)

"""Answer with a tuned model whose experts are chosen, token by token, by the base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rasa_moe.data.chats import EncodedChat, collate, encode_chat
from rasa_moe.data.rows import Message
from rasa_moe.engines import Answer
from rasa_moe.engines.local import LEFT_OUT, answer_of, readable_batches, stop_tokens
from rasa_moe.moe import MoeMap, RoutingTrace, record, replay
from rasa_moe.progress import Progress, no_progress


def generate_with_base_routing(
    tuned: Any,
    base: Any,
    tokenizer: Any,
    *,
    moes: tuple[MoeMap, MoeMap],
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_tokens: int = 8192,
    label: str = "audit",
    progress: Progress = no_progress,
) -> list[Answer]:
    """Answer greedily with `tuned`, forcing the routed experts and weights `base` uses on the same tokens.

    Args:
        tuned: The model that answers.
        base: A separate model of the same architecture, which reads the same tokens and only routes.
        tokenizer: Of both.
        moes: Their maps, tuned first.
        conversations: Each ends with the user's turn.
        max_new_tokens: Longest answer.
        batch_tokens: As in `generate`.
        label: Names the step in progress.
        progress: Called after every batch.
    """
    prompts = [encode_chat(tokenizer, conversation) for conversation in conversations]
    answers: dict[int, Answer] = {}
    stops = stop_tokens(tuned, tokenizer)
    batches = readable_batches(tuned, prompts, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens)
    for indices in batches:
        tokens = _decode(
            tuned, base, [prompts[i] for i in indices], tokenizer.pad_token_id, moes, max_new_tokens, stops
        )
        for index, row in zip(indices, tokens.tolist(), strict=True):
            answers[index] = answer_of(tokenizer, row, prompt=prompts[index].input_ids, stops=stops)
        progress(label, len(answers), sum(map(len, batches)))
    return [answers.get(index, LEFT_OUT) for index in range(len(prompts))]


@torch.inference_mode()
def _decode(
    tuned: Any,
    base: Any,
    prompts: Sequence[EncodedChat],
    pad_id: int,
    moes: tuple[MoeMap, MoeMap],
    max_new_tokens: int,
    stops: frozenset[int],
) -> Tensor:
    """Return (B, new tokens) int64; both models keep a cache of their own."""
    batch = collate(prompts, pad_id, side="left").to(tuned.device)
    ids, mask = batch.input_ids, batch.attention_mask
    positions = batch.position_ids
    caches: dict[str, Any] = {"base": None, "tuned": None}
    stop_ids = torch.tensor(sorted(stops), device=ids.device)
    is_done = torch.zeros(len(prompts), dtype=torch.bool, device=ids.device)
    new_tokens: list[Tensor] = []

    def call(name: str, model: Any) -> Any:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=caches[name],
            use_cache=True,
        )
        caches[name] = output.past_key_values
        return output

    while len(new_tokens) < max_new_tokens and not bool(is_done.all()):
        with record(moes[1], base) as trace:
            call("base", base)
        with replay(moes[0], trace):
            logits = call("tuned", tuned).logits[:, -1]
        chosen = logits.argmax(dim=-1)
        new_tokens.append(chosen)
        is_done |= torch.isin(chosen, stop_ids)
        ids = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return torch.stack(new_tokens, dim=1)


def routing_drift(first: RoutingTrace, second: RoutingTrace) -> dict[str, float]:
    """Compare two models' routing of the same tokens.

    Returns:
        Layer name -> share of (token, slot) choices of `second` whose expert `first` did not choose for that
        token, in 0 to 1. The order of the slots does not matter.
    """
    drift = {}
    for name, ids_TK in first.ids.items():
        matches_TKK = second.ids[name][:, :, None] == ids_TK[:, None, :]
        drift[name] = 1.0 - float(matches_TKK.any(dim=-1).float().mean())
    return drift

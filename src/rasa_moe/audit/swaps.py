"""Answer with a tuned model whose experts are chosen, token by token, by the base model, or the other way."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rasa_moe.audit.components import Difference
from rasa_moe.data.chats import Batch, collate, encode_chat
from rasa_moe.data.rows import Message
from rasa_moe.engines import Answer
from rasa_moe.engines.local import LEFT_OUT, answer_of, readable_batches, stop_tokens
from rasa_moe.moe import MoeMap, RoutingTrace, record, replay
from rasa_moe.progress import Progress, no_progress


def generate_with_routing(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    changes: Difference,
    answered_by: Collection[str],
    routed_by: Collection[str],
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    batch_tokens: int = 8192,
    label: str = "audit",
    progress: Progress = no_progress,
) -> list[Answer]:
    """Answer greedily with one mixture, forcing the routed experts and weights of another on the same tokens.

    Both read every token, one after the other: the model becomes the one that routes, then the one that
    answers.

    Args:
        model: The base model; it is so again afterwards.
        tokenizer: Its tokenizer.
        moe: Its map.
        changes: What differs in the tuned model.
        answered_by: Components of the mixture that answers which are the tuned model's.
        routed_by: The same of the mixture that routes; none is the base model.
        conversations: Each ends with the user's turn.
        max_new_tokens: Longest answer.
        batch_tokens: As in `generate`.
        label: Names the step in progress.
        progress: Called after every batch.
    """
    prompts = [encode_chat(tokenizer, conversation) for conversation in conversations]
    answers: dict[int, Answer] = {}
    stops = stop_tokens(model, tokenizer)
    batches = readable_batches(model, prompts, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens)
    step = _Step(model, moe, changes, answered_by=answered_by, routed_by=routed_by)
    with changes.mixed(routed_by):
        for indices in batches:
            batch = collate([prompts[index] for index in indices], tokenizer.pad_token_id, side="left")
            tokens = _decode(step, batch.to(model.device), max_new_tokens=max_new_tokens, stops=stops)
            for index, row in zip(indices, tokens.tolist(), strict=True):
                answers[index] = answer_of(tokenizer, row, prompt=prompts[index].input_ids, stops=stops)
            progress(label, len(answers), sum(map(len, batches)))
    return [answers.get(index, LEFT_OUT) for index in range(len(prompts))]


@dataclass(frozen=True, eq=False)
class _Step:
    """Read tokens with both mixtures; each has a cache of its own."""

    model: Any
    moe: MoeMap
    changes: Difference
    answered_by: Collection[str] = field(kw_only=True)
    routed_by: Collection[str] = field(kw_only=True)

    def __call__(self, caches: dict[str, Any], **tokens: Tensor) -> Tensor:
        """Return the scores after the last token, (B,V), and keep the grown caches in `caches`."""
        self.changes.become(self.routed_by)
        with record(self.moe, self.model) as trace:
            self._read("routes", caches, tokens)
        self.changes.become(self.answered_by)
        with replay(self.moe, trace):
            logits: Tensor = self._read("answers", caches, tokens).logits[:, -1]
        return logits

    def _read(self, which: str, caches: dict[str, Any], tokens: dict[str, Tensor]) -> Any:
        output = self.model(**tokens, past_key_values=caches.get(which), use_cache=True)
        caches[which] = output.past_key_values
        return output


@torch.no_grad()  # not inference mode, in which shares of weights cannot be gathered
def _decode(step: _Step, batch: Batch, *, max_new_tokens: int, stops: frozenset[int]) -> Tensor:
    """Return (B, new tokens) int64."""
    ids, mask, positions = batch.input_ids, batch.attention_mask, batch.position_ids
    caches: dict[str, Any] = {}
    stop_ids = torch.tensor(sorted(stops), device=ids.device)
    is_done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    new_tokens: list[Tensor] = []
    while len(new_tokens) < max_new_tokens and not bool(is_done.all()):
        logits = step(caches, input_ids=ids, attention_mask=mask, position_ids=positions)
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

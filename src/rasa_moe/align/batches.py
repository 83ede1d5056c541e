"""What one optimiser step sees: jailbreaks and plain requests with a refusal, and harmless conversations.

The three parts go through the model in one forward call. Batches are put together once, by seed; epochs
differ in their order only, so that routing recorded on a batch can be replayed on exactly that batch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from rasa_moe.collect.stage import RetainRow
from rasa_moe.data.chats import Batch, EncodedChat, collate, encode_chat
from rasa_moe.data.rows import Pair


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Hold one step's chats.

    Attributes:
        chats: The padded batch; answers are the labels.
        parts: Part name ("jailbreak", "anchor", "retain") -> rows of the batch that belong to it, (b,) int64.
            Row i of "jailbreak" and row i of "anchor" are one pair.
    """

    chats: Batch
    parts: Mapping[str, Tensor]

    def part(self, name: str) -> Batch:
        """Return one part as a batch of its own, with the same padding."""
        rows = self.parts[name]
        return Batch(
            input_ids=self.chats.input_ids[rows],
            attention_mask=self.chats.attention_mask[rows],
            labels=self.chats.labels[rows],
            spans={span: mask[rows] for span, mask in self.chats.spans.items()},
        )


def make_batches(
    tokenizer: Any,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> list[TrainingBatch]:
    """Put pairs and harmless conversations into batches, drawn once.

    Every pair occurs once; as many harmless conversations go beside them, repeated if there are fewer.

    Args:
        tokenizer: With a chat template.
        pairs: The refusal to learn is the model's own answer to the plain request of the same pair.
        retain: May be empty.
        batch_size: Pairs of one batch.
        seed: Decides the composition.
        device: Where the tensors go.
    """
    order = random.Random(seed)
    shuffled_pairs = order.sample(list(pairs), k=len(pairs))
    shuffled_retain = list(islice(cycle(order.sample(list(retain), k=len(retain))), len(pairs)))
    batches = []
    for start in range(0, len(pairs), batch_size):
        chosen = shuffled_pairs[start : start + batch_size]
        kept = shuffled_retain[start : start + batch_size]
        parts = {
            "jailbreak": [encode_chat(tokenizer, pair.jailbreak, pair.anchor_answer) for pair in chosen],
            "anchor": [encode_chat(tokenizer, pair.anchor, pair.anchor_answer) for pair in chosen],
            "retain": [encode_chat(tokenizer, row.messages, row.answer) for row in kept],
        }
        batches.append(_batch_of(parts, tokenizer.pad_token_id, device=device))
    return batches


def _batch_of(
    parts: Mapping[str, Sequence[EncodedChat]], pad_id: int, *, device: torch.device | str
) -> TrainingBatch:
    rows: dict[str, Tensor] = {}
    chats: list[EncodedChat] = []
    for name, members in parts.items():
        if members:
            rows[name] = torch.arange(len(chats), len(chats) + len(members), device=device)
            chats.extend(members)
    return TrainingBatch(chats=collate(chats, pad_id, side="right").to(device), parts=rows)


def epoch_order(num_batches: int, *, seed: int, epoch: int) -> list[int]:
    """Return the order of the batches in one epoch, by seed and epoch only, so that a resumed run agrees."""
    order = list(range(num_batches))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order

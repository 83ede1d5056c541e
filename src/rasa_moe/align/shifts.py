"""What other contexts add to the hidden state at the last prompt token, added in repair at random strength.

In a wrapping that training did not show, harm is still there to be read at that token; what a wrapping shifts
is where harmless ends and harmful begins. So repair can show everything as if it had been asked in other
contexts: neither a refusal nor an answer may lean on what contexts differ in. Domain randomisation, as it is
known elsewhere, in the space of hidden states.

Shape letters: B rows of a batch (b of a micro-batch), S positions, G contexts, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from rasa_moe.align.batches import MicroBatch, TrainingBatch
from rasa_moe.collect.stage import RetainRow
from rasa_moe.data.chats import EncodedChat, collate, encode_chat, length_bucketed
from rasa_moe.data.rows import PLAIN_FAMILY, Pair
from rasa_moe.distributed import current
from rasa_moe.moe import MoeMap, call_for_routing, entering_last_layer, shifted

_PLAIN = ("harmless", PLAIN_FAMILY)
# Enough for a mean; more would cost a forward each.
_ROWS_OF_A_CONTEXT = 64
_RECOVERY = "recovery"
# Questions about harmful things: what they add to a harmful request makes it one that is to be answered.
_LEFT_OUT = "question"


class ContextShifts:
    """Draw a shift for every row of a batch, alike in every process and after a resume.

    Args:
        model: The model, while it is still the base model.
        moe: Its map.
        directions: (G,D) fp32, of `context_directions`.
        scale: Standard deviation of the strengths; 1 is the whole difference between contexts.
        seed: Decides the strengths.
    """

    def __init__(self, model: Any, moe: MoeMap, directions: Tensor, *, scale: float, seed: int) -> None:
        self._model, self._moe = model, moe
        self._directions, self._scale, self._seed = directions, scale, seed
        self._epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        """Draw other strengths than in the epoch before."""
        self._epoch = epoch

    def __call__(self, batch: TrainingBatch, index: int, micro: MicroBatch) -> AbstractContextManager[None]:
        """Shift the last prompt tokens of a pass, but for those of cut answers, where nothing is learned."""
        shifts = self._drawn(batch, index).to(micro.rows.device)[micro.rows]
        if _RECOVERY in batch.parts:
            shifts = shifts * ~torch.isin(micro.rows, batch.parts[_RECOVERY])[:, None]
        own = current().own_rows
        return shifted(self._moe, self._model, own(micro.chats.spans["last_prompt"]), own(shifts))

    def _drawn(self, batch: TrainingBatch, index: int) -> Tensor:
        """Return (B,D) fp32 on the CPU."""
        # A prime to each, so that no two batches and epochs share their strengths.
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + 7_919 * self._epoch + index)
        strengths = torch.randn(len(batch.chats.input_ids), len(self._directions), generator=generator)
        return self._scale * strengths @ self._directions


def context_shifts(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    scale: float,
    batch_tokens: int,
    seed: int,
) -> ContextShifts | None:
    """Return shifts along what the contexts of some data add; None for a scale of 0.

    Args as in `context_directions` and `ContextShifts`.
    """
    if scale == 0 or not pairs:
        return None
    directions = context_directions(
        model, tokenizer, moe, pairs=pairs, retain=retain, batch_tokens=batch_tokens
    )
    return ContextShifts(model, moe, directions, scale=scale, seed=seed)


def context_directions(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    batch_tokens: int,
) -> Tensor:
    """Return what each context adds to the hidden state at the last prompt token, on average.

    Of an attack family: jailbreaks minus the plain requests for the same goals. Of a kind and family of
    harmless conversations, questions left out: its mean minus that of plain harmless requests, or minus the
    mean of all where there are none.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        moe: Its map.
        pairs: With at least one family.
        retain: May be empty.
        batch_tokens: Most tokens of one pass.

    Returns:
        (G,D) fp32 on the CPU.
    """
    families: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        families[pair.family].append(pair)
    groups: dict[tuple[str, str], list[RetainRow]] = defaultdict(list)
    for row in retain:
        if row.kind != _LEFT_OUT:
            groups[row.kind, row.family].append(row)

    def mean(chats: Sequence[EncodedChat]) -> Tensor:
        return _last_prompt_states(model, tokenizer, moe, chats, batch_tokens=batch_tokens).mean(dim=0)

    directions = []
    for _, members in sorted(families.items()):
        some = members[:_ROWS_OF_A_CONTEXT]
        jailbreaks = mean([encode_chat(tokenizer, pair.jailbreak, pair.anchor_answer) for pair in some])
        anchors = mean([encode_chat(tokenizer, pair.anchor, pair.anchor_answer) for pair in some])
        directions.append(jailbreaks - anchors)
    harmless = {
        group: mean([encode_chat(tokenizer, row.messages, row.answer) for row in rows[:_ROWS_OF_A_CONTEXT]])
        for group, rows in sorted(groups.items())
    }
    if harmless:
        everywhere = torch.stack(list(harmless.values())).mean(dim=0)
        origin = harmless.pop(_PLAIN, everywhere)
        directions.extend(state - origin for state in harmless.values())
    return torch.stack(directions)


@torch.no_grad()
def _last_prompt_states(
    model: Any, tokenizer: Any, moe: MoeMap, chats: Sequence[EncodedChat], *, batch_tokens: int
) -> Tensor:
    """Return (number of chats, D) fp32 on the CPU, in the order of the passes."""
    found = []
    for numbers in length_bucketed([len(chat) for chat in chats], batch_tokens=batch_tokens):
        batch = collate([chats[number] for number in numbers], tokenizer.pad_token_id, side="right")
        batch = batch.to(model.device)
        with entering_last_layer(moe, model, batch.spans["last_prompt"]) as seen:
            # No experts of the last layer and no scores: nobody reads them.
            call_for_routing(moe, model, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        found.append(seen[0].float().cpu())
    return torch.cat(found)

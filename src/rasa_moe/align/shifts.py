"""What other contexts add to the hidden state at the last prompt token, added in repair to what is refused.

In a wrapping that training did not show, harm is still there to be read at that token; what a wrapping shifts
is where harmless ends and harmful begins. So repair can show a request in the mixture of contexts in which it
is refused least: latent adversarial training (Casper et al., "Defending against unforeseen failure modes with
latent adversarial training", 2024), whose disturbances are mixtures of what contexts really add.

Were all refusals shown so, the shift itself would become what is refused: its loss falls and the request as
it is comes through again, as in Wong et al., "Fast is better than free" (2020). So half of them, drawn anew
each epoch, are left as they are.

Shape letters: B rows of a batch (b of a micro-batch), S positions, G contexts, D width.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rasa_moe.align.batches import MicroBatch, TrainingBatch
from rasa_moe.collect.stage import RetainRow
from rasa_moe.data.chats import EncodedChat, collate, encode_chat, length_bucketed
from rasa_moe.data.rows import PLAIN_FAMILY, Pair
from rasa_moe.distributed import current
from rasa_moe.moe import (
    MoeMap,
    call_for_routing,
    can_be_entered,
    entered_with,
    kept_entry,
    shifted,
)

_PLAIN = ("harmless", PLAIN_FAMILY)
# Enough for a mean; more would cost a forward each.
_ROWS_OF_A_CONTEXT = 64
# In a cut answer nothing is decided at the last prompt token; shifted harmless requests cost abilities.
_SHIFTED = ("jailbreak", "anchor")
# Questions about harmful things: what they add to a harmful request makes it one that is to be answered.
_LEFT_OUT = "question"


class ContextShifts:
    """Show half of what is refused in the mixture of contexts in which it is refused least, by one gradient.

    Args:
        model: The model.
        moe: Its map.
        directions: (G,D) fp32, of `context_directions`.
        length: Of the strengths of one row, one for each context, taken together; a strength of 1 is all that
            its context adds.
        seed: Decides, with the epoch, which half of a batch is shifted.
    """

    def __init__(self, model: Any, moe: MoeMap, directions: Tensor, *, length: float, seed: int) -> None:
        self._model, self._moe = model, moe
        self._directions, self._length = directions, length
        self._begins_late = can_be_entered(moe, model)
        self._seed, self._epoch = seed, 0

    def begin_epoch(self, epoch: int) -> None:
        """Draw other halves; by seed, epoch and batch only, so that a resumed run agrees."""
        self._epoch = epoch

    @contextmanager
    def __call__(
        self, batch: TrainingBatch, index: int, micro: MicroBatch, loss: Callable[[], Tensor]
    ) -> Iterator[None]:
        """Shift the last prompt tokens of a pass where they lead to a refusal of the half that is drawn.

        What comes before the last MoE layer is computed once, in the search, and taken over by the pass; in
        models whose layers hand on more than hidden states it is computed twice.

        Args:
            batch: Says which rows are refused.
            index: The number of the batch.
            micro: The pass.
            loss: Forwards it; called once, within a context of its own, if anything in it is shifted.
        """
        is_shifted = torch.isin(micro.rows, self._drawn(batch, index))
        if not is_shifted.any():
            yield
            return
        strengths = torch.zeros(
            len(micro.rows), len(self._directions), device=micro.rows.device, requires_grad=True
        )
        with kept_entry(self._moe, self._model) as entries, self._shifted(micro, strengths):
            (ascent,) = torch.autograd.grad(loss(), strengths)
        hardest = self._length * functional.normalize(ascent, dim=1) * is_shifted[:, None]
        taken_over = entered_with(self._moe, self._model, entries[0]) if self._begins_late else nullcontext()
        with taken_over, self._shifted(micro, hardest):
            yield

    def _drawn(self, batch: TrainingBatch, index: int) -> Tensor:
        """Return half of the rows that are refused, int64."""
        refused = torch.cat([batch.parts[name] for name in _SHIFTED])
        draw = random.Random(f"{self._seed} {self._epoch} {index}")
        return refused[draw.sample(range(len(refused)), k=len(refused) // 2)]

    def _shifted(self, micro: MicroBatch, strengths: Tensor) -> AbstractContextManager[None]:
        """Shift the rows of this process; `strengths` is (b,G) fp32, of all rows."""
        own = current().own_rows
        shifts = own(strengths) @ self._directions.to(strengths)
        return shifted(self._moe, self._model, own(micro.chats.spans["last_prompt"]), shifts)


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
        with kept_entry(moe, model) as entries:
            # No experts of the last layer and no scores: nobody reads them.
            call_for_routing(moe, model, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        hidden = entries[0]
        found.append(hidden[batch.spans["last_prompt"].to(hidden.device)].flatten(1).float().cpu())
    return torch.cat(found)

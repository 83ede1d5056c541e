"""What one optimiser step sees: jailbreaks and plain requests with a refusal, and harmless conversations.

A step's chats go through the model in micro-batches of similar length, whose gradients add up. Batches are
put together once, by seed; epochs differ in their order only, so that routing recorded on a batch can be
replayed on exactly that batch.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any

import torch
from torch import Tensor

from rasa_moe.align.readings import BaseReadings
from rasa_moe.collect.stage import RetainRow
from rasa_moe.config import AlignConfig
from rasa_moe.data.chats import IGNORED_LABEL, Batch, EncodedChat, collate, encode_chat, length_bucketed
from rasa_moe.data.rows import Pair
from rasa_moe.distributed import current


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Hold the chats of one forward and backward pass.

    Attributes:
        chats: Padded to the longest of them.
        rows: (b,) int64 ascending, their rows in the batch they were taken from.
        parts: Names of the parts they were taken from.
    """

    chats: Batch
    rows: Tensor
    parts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Hold one step's chats.

    Attributes:
        chats: The padded batch; answers are the labels.
        parts: Part name ("jailbreak", "anchor", "retain", "recovery") -> its rows of the batch, (b,) int64.
            Row i of "jailbreak", of "anchor" and of "recovery" are one pair.
    """

    chats: Batch
    parts: Mapping[str, Tensor]

    def part(self, *names: str) -> Batch:
        """Return parts as a batch of their own, one after another, with the same padding."""
        rows = torch.cat([self.parts[name] for name in names])
        return _taken(self.chats, rows, length=self.chats.input_ids.shape[1])

    def prompts(self) -> TrainingBatch:
        """Return the same rows without their answers."""
        is_prompt = self.chats.spans["prompt"]
        chats = Batch(
            input_ids=self.chats.input_ids,
            attention_mask=is_prompt.long(),
            labels=torch.full_like(self.chats.labels, IGNORED_LABEL),
            spans={span: mask & is_prompt for span, mask in self.chats.spans.items()},
        )
        rows = torch.arange(len(is_prompt), device=is_prompt.device)
        return TrainingBatch(_taken(chats, rows, length=int(is_prompt.sum(dim=1).max())), self.parts)

    def micro_batches(self, *names: str, batch_tokens: int) -> list[MicroBatch]:
        """Share out the rows of some parts, of all where none is named, among passes of similar length.

        Processes that share rows cut alike, so that all of them forward equally often.

        Args:
            names: Parts; other rows are left out.
            batch_tokens: Most tokens of one pass of one process, padding included; a longer chat gets a pass
                of its own.
        """
        lengths = self.chats.attention_mask.sum(dim=1).tolist()
        parts = names or tuple(self.parts)
        chosen = torch.cat([self.parts[name] for name in parts]).tolist()
        by_length = sorted(chosen, key=lambda row: -lengths[row])
        dealt = 1 if (world := current()).is_alike else world.size
        # One row for each process; none is longer than the first.
        hands = [by_length[start : start + dealt] for start in range(0, len(by_length), dealt)]
        passes = length_bucketed([lengths[hand[0]] for hand in hands], batch_tokens=batch_tokens)
        found = []
        for numbers in passes:
            rows = sorted(row for number in numbers for row in hands[number])
            at = torch.tensor(rows, device=self.chats.input_ids.device)
            chats = _taken(self.chats, at, length=max(lengths[row] for row in rows))
            found.append(MicroBatch(chats, at, parts))
        return found


def _taken(chats: Batch, rows: Tensor, *, length: int) -> Batch:
    """Return some rows of a batch that is padded on the right, cut to a length."""
    return Batch(
        input_ids=chats.input_ids[rows, :length],
        attention_mask=chats.attention_mask[rows, :length],
        labels=chats.labels[rows, :length],
        spans={span: mask[rows, :length] for span, mask in chats.spans.items()},
    )


def make_batches(
    tokenizer: Any,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    batch_size: int,
    seed: int,
    retain_per_pair: int = 1,
    recovery_depth: float | None = None,
    device: torch.device | str = "cpu",
) -> list[TrainingBatch]:
    """Put pairs and harmless conversations into batches, drawn once.

    Every pair occurs once; harmless conversations go beside them, of every kind as many, repeated if there
    are too few.

    Deviation: with `recovery_depth` refusals are also learned behind the beginning of a harmful answer; the
        paper learns them at the beginning of an answer alone.

    Args:
        tokenizer: With a chat template.
        pairs: The refusal to learn is the model's own answer to the plain request of the same pair.
        retain: May be empty.
        batch_size: Pairs of one batch.
        seed: Decides the composition.
        retain_per_pair: Harmless conversations beside each pair.
        recovery_depth: Add the part "recovery", a refusal within this share of each harmful answer.
        device: Where the tensors go.
    """
    order = random.Random(seed)
    shuffled_pairs = order.sample(list(pairs), k=len(pairs))
    shuffled_retain = list(islice(_in_turn(retain, order), retain_per_pair * len(pairs)))
    harmful_answers: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        harmful_answers[pair.goal].append(pair.jailbreak_answer)
    for goal, others in {pair.goal: pair.other_answers for pair in pairs}.items():
        harmful_answers[goal].extend(others)
    batches = []
    for start in range(0, len(pairs), batch_size):
        chosen = shuffled_pairs[start : start + batch_size]
        kept = shuffled_retain[retain_per_pair * start : retain_per_pair * (start + batch_size)]
        parts = {
            "jailbreak": [encode_chat(tokenizer, pair.jailbreak, pair.anchor_answer) for pair in chosen],
            "anchor": [encode_chat(tokenizer, pair.anchor, pair.anchor_answer) for pair in chosen],
            "retain": [encode_chat(tokenizer, row.messages, row.answer) for row in kept],
        }
        if recovery_depth is not None:
            parts["recovery"] = [
                _recovery(tokenizer, pair, order.choice(harmful_answers[pair.goal]), recovery_depth, order)
                for pair in chosen
            ]
        batches.append(_batch_of(parts, tokenizer.pad_token_id, device=device))
    return batches


def batches_for(
    tokenizer: Any,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    config: AlignConfig,
    seed: int,
    device: torch.device | str,
    readings: BaseReadings,
) -> list[TrainingBatch]:
    """Return the batches that a configuration describes, the same for RASA and for every rival method."""
    settings = batch_settings(config)
    return readings.read(
        "batches",
        lambda: make_batches(tokenizer, pairs=pairs, retain=retain, seed=seed, device=device, **settings),
        pairs=pairs,
        retain=retain,
        facts=[settings, seed],
    )


def batch_settings(config: AlignConfig) -> dict[str, Any]:
    """Return the arguments of `make_batches` that a configuration decides."""
    return {
        "batch_size": config.batch_size,
        "retain_per_pair": config.retain_per_pair,
        "recovery_depth": config.recovery_depth if config.recovery_weight else None,
    }


def _in_turn(retain: Sequence[RetainRow], order: random.Random) -> Iterator[RetainRow]:
    """Yield conversations of every kind in turn, for ever, each kind in an order drawn once.

    Wrapped requests outnumber questions and abilities the more, the more families there are; drawn from all
    alike, the few rows of what is hardest to keep (sums, in the built-in models) would be the first to go.
    """
    kinds: dict[str, list[RetainRow]] = defaultdict(list)
    for row in order.sample(list(retain), k=len(retain)):
        kinds[row.kind].append(row)
    return chain.from_iterable(zip(*map(cycle, kinds.values()), strict=False)) if kinds else iter(())


def _recovery(
    tokenizer: Any, pair: Pair, harmful_answer: str, depth: float, order: random.Random
) -> EncodedChat:
    """Cut a harmful answer within a share of it and go on with the refusal, which alone is learned.

    A refusal learned at the first token only is undone by any opening that training did not show. See Qi et
    al., "Safety alignment should be made more than just a few tokens deep" (2024). The request is the
    jailbreak or the plain one, and the answer may be that to another jailbreak for the same goal, or one that
    begins otherwise: then the refusal depends on the harm and not on which request led to which opening. Half
    of the cuts are in the first quarter of that share: deep in an answer the words themselves tell train
    goals apart, and learning them costs harmless answers.
    """
    messages = order.choice((pair.jailbreak, pair.anchor))
    harmful = encode_chat(tokenizer, messages, harmful_answer)
    refused = encode_chat(tokenizer, messages, pair.anchor_answer)
    length = len(harmful) - harmful.prompt_length
    cut = harmful.prompt_length + max(1, int(length * depth * order.random() ** 2))
    return EncodedChat(
        input_ids=harmful.input_ids[:cut] + refused.input_ids[refused.prompt_length :], prompt_length=cut
    )


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

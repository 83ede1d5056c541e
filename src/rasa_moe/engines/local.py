"""Greedy generation with the model in memory: batches of similar prompts, answers back in the order asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rasa_moe.data.chats import EncodedChat, collate, encode_chat, length_bucketed, within_length
from rasa_moe.data.rows import Message
from rasa_moe.data.thinking import decode_told, opened_thinking
from rasa_moe.distributed import current
from rasa_moe.engines.greedy import SHARED_TOKENS, greedy, halving
from rasa_moe.progress import Progress, no_progress

# A thinking tag and the layout after it are never longer.
_OPENING_TOKENS = 12


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Hold what a model said.

    Attributes:
        text: What was told to the user, without special tokens and thoughts, stripped.
        is_truncated: The answer hit the limit of new tokens before it ended.
        num_tokens: Generated tokens, the end-of-turn token included.
        thinking: What the model thought before it answered.
        is_left_out: The prompt is longer than the model's context, so nothing was asked: what a model writes
            beyond it says nothing of its safety. The text is empty, which no judge scores.
    """

    text: str
    is_truncated: bool
    num_tokens: int
    thinking: str = ""
    is_left_out: bool = False


LEFT_OUT = Answer(text="", is_truncated=False, num_tokens=0, is_left_out=True)


def generate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    label: str = "generate",
    progress: Progress = no_progress,
) -> list[Answer]:
    """Answer every conversation greedily; those above the model's context are left out.

    Args:
        model: Causal language model in eval mode.
        tokenizer: Its tokenizer, with a chat template and a pad token.
        conversations: Each ends with the user's turn.
        max_new_tokens: Longest answer in tokens.
        batch_tokens: Prompt tokens of one batch, padding and room for the answers included.
        label: Names the step in progress.
        progress: Called after every batch with the number of conversations done.

    Raises:
        ModelError: The chat template refuses a conversation, or memory is too small for one alone.
    """
    prompts = [encode_chat(tokenizer, conversation) for conversation in conversations]
    batches = _batches(
        prompts, readable(model, prompts), max_new_tokens=max_new_tokens, batch_tokens=batch_tokens
    )
    mine = (world := current()).part(batches)
    answers: dict[int, Answer] = {}
    stops = stop_tokens(model, tokenizer)
    done, total = 0, sum(len(indices) for indices in mine)
    for indices in mine:
        rows = halving(
            lambda part: greedy(
                model,
                collate([prompts[index] for index in part], tokenizer.pad_token_id, side="left"),
                max_new_tokens=max_new_tokens,
                stops=stops,
                pad_id=tokenizer.pad_token_id,
            ),
            indices,
        )
        for index, row in zip(indices, rows, strict=True):
            answers[index] = answer_of(tokenizer, row, prompt=prompts[index].input_ids, stops=stops)
        done += len(indices)
        progress(label, done, total)
    everybody = world.gather({index: asdict(answer) for index, answer in answers.items()})
    return [Answer(**everybody[index]) if index in everybody else LEFT_OUT for index in range(len(prompts))]


def readable(model: Any, chats: Sequence[EncodedChat]) -> Sequence[int]:
    """Return the places of the chats that are no longer than what the model learnt to read."""
    # Architectures without positions have no such limit.
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return range(len(chats)) if context is None else within_length(chats, max_length=context).kept


def readable_batches(
    model: Any, chats: Sequence[EncodedChat], *, max_new_tokens: int, batch_tokens: int
) -> list[list[int]]:
    """Group the places of `readable` chats by length, with room for the answers."""
    places = readable(model, chats)
    lengths = [len(chats[place]) + max_new_tokens for place in places]
    return [
        [places[number] for number in batch] for batch in length_bucketed(lengths, batch_tokens=batch_tokens)
    ]


def _batches(
    prompts: Sequence[EncodedChat], places: Sequence[int], *, max_new_tokens: int, batch_tokens: int
) -> list[list[int]]:
    """Group prompts of similar length, and those apart that begin alike where they fill a batch.

    Args:
        prompts: All prompts.
        places: Those to group.
        max_new_tokens: Room for each answer.
        batch_tokens: Most tokens of a batch.

    Returns:
        Batches of indices, those with the longest prompts first.
    """
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index in places:
        alike[tuple(prompts[index].input_ids[:SHARED_TOKENS])].append(index)
    groups: list[list[int]] = [[]]
    for members in alike.values():
        fills = sum(lengths[index] for index in members) >= batch_tokens
        groups.append(members) if fills else groups[0].extend(members)
    found = [
        [group[place] for place in batch]
        for group in groups
        for batch in length_bucketed([lengths[index] for index in group], batch_tokens=batch_tokens)
    ]
    return sorted(found, key=lambda batch: -lengths[batch[0]])


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the token ids that end an answer, from the generation config and the tokenizer."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)


def answer_of(
    tokenizer: Any, generated: list[int], *, prompt: Sequence[int], stops: frozenset[int]
) -> Answer:
    """Turn generated token ids into an answer, cut at the first token of `stops`.

    `prompt`: its token ids; one that ends in an open thinking block makes the answer begin with thoughts.
    """
    prompt_end = tokenizer.decode(prompt[-_OPENING_TOKENS:])
    length = next((place for place, token in enumerate(generated) if token in stops), None)
    kept = generated if length is None else generated[:length]
    parted = decode_told(tokenizer, kept, is_opened=opened_thinking(prompt_end) is not None)
    return Answer(
        text=parted.text,
        is_truncated=length is None,
        num_tokens=len(kept) + (length is not None),
        thinking=parted.thinking,
    )

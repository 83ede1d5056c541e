"""From conversations to padded batches whose masks say exactly which tokens are prompt and which are answer.

Shape letters: B sequences, S positions.

Two rules hold everywhere. The tokens of a prompt are the same whether or not an answer follows, because the
model must be trained on what it will see when it generates. And nothing is ever truncated: a chat that is too
long is dropped and counted, since half an attack or half a refusal is another text.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from rasa_moe.data.clock import clock_options
from rasa_moe.data.rows import Message
from rasa_moe.data.thinking import is_thinking, with_prompted_thoughts
from rasa_moe.errors import DataError, ModelError

IGNORED_LABEL = -100
# A causal model tells all about these without reading the answer.
SPANS_OF_PROMPT = ("prompt", "last_prompt")
SPANS = ("prompt", "response", "both", "last_prompt", "deciding")

_PROBE_QUESTION = "How are you?"
_PROBE_ANSWER = "Quite well."


@dataclass(frozen=True)
class EncodedChat:
    """Hold the tokens of a prompt and, if there is one, of its answer.

    Attributes:
        input_ids: Prompt tokens, then response tokens up to and including the end-of-turn token.
        prompt_length: Number of prompt tokens, generation prompt included; at least 1.
    """

    input_ids: list[int]
    prompt_length: int

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.input_ids)


@dataclass(frozen=True)
class Batch:
    """Hold padded chats and the masks that name their parts.

    Attributes:
        input_ids: (B, S) int64.
        attention_mask: (B, S) int64, 1 on real tokens.
        labels: (B, S) int64, the response tokens in place and -100 elsewhere; the model shifts them itself.
        spans: name -> (B, S) bool. "prompt" and "response" share out the real tokens ("both");
            "last_prompt" is the final prompt token; "deciding" are the positions that predict a response
            token, from the last prompt token to the last but one response token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    spans: Mapping[str, Tensor]

    @property
    def position_ids(self) -> Tensor:
        """Number the real tokens from 0 whatever the padding, (B, S) int64; padding gets 0."""
        return (self.attention_mask.cumsum(dim=-1) - 1).clamp(min=0)

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        return Batch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
            spans={name: span.to(device) for name, span in self.spans.items()},
        )


@dataclass(frozen=True)
class LengthFilter:
    """Say which chats fit: indices of those kept, how many were dropped, and the longest length seen."""

    kept: tuple[int, ...]
    dropped: int
    longest: int


def check_template(tokenizer: Any) -> None:
    """Make sure the chat template can tell a prompt from its answer, before hours of work depend on it.

    Raises:
        ModelError: There is no template, it fails on a plain question, or an answer changes the prompt
            before it.
    """
    if not tokenizer.chat_template:
        raise ModelError(f"{_name_of(tokenizer)} has no chat template; use an instruction-tuned model")
    encode_chat(tokenizer, (Message(role="user", content=_PROBE_QUESTION),), _PROBE_ANSWER)


def template_options(tokenizer: Any) -> dict[str, Any]:
    """Return what every call of `apply_chat_template` is given: thinking on or off, a clock that stands."""
    return {
        "enable_thinking": is_thinking(tokenizer),
        "thinking": is_thinking(tokenizer),  # what DeepSeek's templates call it
        **clock_options(tokenizer.chat_template),
    }


def render(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """Write a conversation as the model's own template does.

    Thinking is off where it can be, unless `set_thinking` switched it on. A date that a template writes is
    always the same.

    Raises:
        ModelError: The template refuses the conversation (some know no system turn, some demand that turns
            alternate).
    """
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **template_options(tokenizer),
        )
    except Exception as error:  # templates are programs from elsewhere and raise whatever they like
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"the chat template of {_name_of(tokenizer)} refuses turns ({roles}): {error}"
        ) from error
    return cast(str, text)


def encode_chat(tokenizer: Any, messages: Sequence[Message], answer: str | None = None) -> EncodedChat:
    """Tokenise a prompt and its answer so that the prompt's tokens do not depend on the answer.

    The template writes its own beginning-of-text token, so the tokenizer must not add a second one.

    Raises:
        ModelError: The answer changes how the prompt is written or tokenised.
    """
    prompt = render(tokenizer, messages, add_generation_prompt=True)
    prompt_ids = _tokenise(tokenizer, prompt)
    if not prompt_ids:
        raise ModelError(f"the chat template of {_name_of(tokenizer)} turns a prompt into no tokens at all")
    if answer is None:
        return EncodedChat(input_ids=prompt_ids, prompt_length=len(prompt_ids))
    response = _response_text(tokenizer, messages, prompt=prompt, answer=answer)
    whole_ids = _tokenise(tokenizer, prompt + response)
    if whole_ids[: len(prompt_ids)] == prompt_ids and len(whole_ids) > len(prompt_ids):
        return EncodedChat(input_ids=whole_ids, prompt_length=len(prompt_ids))
    # A merge crosses the border ("\n" + "\n..."). While generating the model never sees that merged token,
    # so the two sides are joined instead, provided that they still spell the same text.
    joined_ids = prompt_ids + _tokenise(tokenizer, response)
    if len(joined_ids) == len(prompt_ids) or _spell(tokenizer, joined_ids) != _spell(tokenizer, whole_ids):
        raise ModelError(f"{_name_of(tokenizer)} tokenises a prompt differently once an answer follows it")
    return EncodedChat(input_ids=joined_ids, prompt_length=len(prompt_ids))


def _response_text(tokenizer: Any, messages: Sequence[Message], *, prompt: str, answer: str) -> str:
    """Return what the model has to write: the answer as the template puts it, and the end of the turn."""
    turns = (*messages, Message(role="assistant", content=answer))
    whole = with_prompted_thoughts(render(tokenizer, turns, add_generation_prompt=False), prompt=prompt)
    if not whole.startswith(prompt):
        raise ModelError(
            f"the chat template of {_name_of(tokenizer)} writes a prompt differently once an answer follows; "
            "use a template whose generation prompt is a prefix of the answered conversation"
        )
    # Layout after the end-of-turn token, such as ChatML's newline, is never generated.
    response = whole[len(prompt) :].rstrip()
    is_open = not response if not answer.strip() else response.endswith(answer.rstrip())
    if is_open:  # the template writes nothing after the last answer; generation then ends with eos
        response += tokenizer.eos_token or ""
    return response


def _tokenise(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _spell(tokenizer: Any, ids: list[int]) -> str:
    return cast(str, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _name_of(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or type(tokenizer).__name__)


def within_length(chats: Iterable[EncodedChat], *, max_length: int) -> LengthFilter:
    """Keep the chats of at most `max_length` tokens, whole, and count the others."""
    lengths = [len(chat) for chat in chats]
    kept = tuple(index for index, length in enumerate(lengths) if length <= max_length)
    return LengthFilter(kept=kept, dropped=len(lengths) - len(kept), longest=max(lengths, default=0))


def collate(
    chats: Sequence[EncodedChat],
    pad_id: int,
    *,
    side: Literal["left", "right"] = "left",
    max_length: int | None = None,
) -> Batch:
    """Pad chats to one length and mark their parts.

    Args:
        chats: B chats, with or without answers.
        pad_id: Fills the padding; may equal a real token's id, since the masks come from lengths.
        side: Where the padding goes; generation needs "left".
        max_length: Refuse longer chats; select them with `within_length` first. Nothing is truncated.

    Raises:
        DataError: No chats, a chat without a prompt, or one longer than `max_length`.
    """
    if not chats:
        raise DataError("cannot make a batch of no chats")
    if any(not 1 <= chat.prompt_length <= len(chat) for chat in chats):
        raise DataError("a chat needs at least one prompt token, and no more prompt tokens than tokens")
    lengths = torch.tensor([len(chat) for chat in chats])
    longest = int(lengths.max())
    if max_length is not None and longest > max_length:
        raise DataError(
            f"a chat has {longest} tokens, above the limit of {max_length}; drop it, never truncate"
        )
    prompt_lengths = torch.tensor([chat.prompt_length for chat in chats])
    starts = longest - lengths if side == "left" else torch.zeros_like(lengths)
    # place[b, s]: index of the token within its own chat; negative or >= length on padding
    place = torch.arange(longest)[None, :] - starts[:, None]
    real = (place >= 0) & (place < lengths[:, None])
    input_ids = torch.full((len(chats), longest), pad_id)
    input_ids[real] = torch.tensor([token for chat in chats for token in chat.input_ids])
    spans = _spans(place, prompt_lengths[:, None], lengths[:, None])
    labels = torch.where(spans["response"], input_ids, torch.full_like(input_ids, IGNORED_LABEL))
    return Batch(input_ids=input_ids, attention_mask=real.long(), labels=labels, spans=spans)


def _spans(place: Tensor, prompt_length: Tensor, length: Tensor) -> dict[str, Tensor]:
    """Name the parts of each chat.

    Args:
        place: (B, S) int64, index of each position within its own chat.
        prompt_length: (B, 1) int64.
        length: (B, 1) int64.

    Returns:
        One (B, S) bool mask a name of SPANS.
    """
    return {
        "prompt": (place >= 0) & (place < prompt_length),
        "response": (place >= prompt_length) & (place < length),
        "both": (place >= 0) & (place < length),
        "last_prompt": place == prompt_length - 1,
        "deciding": (place >= prompt_length - 1) & (place < length - 1),
    }


def length_bucketed(lengths: Sequence[int], *, batch_tokens: int, seed: int | None = None) -> list[list[int]]:
    """Group indices of similar length, so that little of a batch is padding.

    Args:
        lengths: Tokens of each item.
        batch_tokens: Most tokens of a batch, padding included; a longer item gets a batch of its own.
        seed: None gives the longest batches first, so that memory runs out at once or never. A number
            shuffles the order of batches and of equally long items.

    Returns:
        Batches of indices; every index occurs once.
    """
    if batch_tokens < 1:
        raise DataError(f"batch_tokens must be at least 1, got {batch_tokens}")
    order = list(range(len(lengths)))
    generator = random.Random(seed) if seed is not None else None
    if generator is not None:
        generator.shuffle(order)
    order.sort(key=lambda index: -lengths[index])  # stable: equal lengths keep the order they have
    batches: list[list[int]] = []
    for index in order:
        # sorted descending, so the first of a batch is its longest
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    if generator is not None:
        generator.shuffle(batches)
    return batches

"""Tell what a model thinks from what it tells the user, and switch thinking on or off.

Only what is told is judged, trained on and kept. Three forms are known: a block between <think> tags, a block
that the template opens in the prompt (the answer then holds its end alone), and the channels of harmony.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

# A thinking block at the very end of a prompt, opened or opened and closed, with the layout after it.
_PROMPTED = re.compile(r"<(think|thinking|thought|reasoning)>\s*(</\1>\s*)?\Z")
_EMPTY = re.compile(
    r"\A(?:<(?:think|thinking|thought|reasoning)>\s*)?(?:</(?:think|thinking|thought|reasoning)>\s*)?"
)
_BLOCK = re.compile(r"<(think|thinking|thought|reasoning)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_CLOSING = re.compile(r"</(?:think|thinking|thought|reasoning)>")
_CHANNEL = "<|channel|>"
_CHANNELS = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(.*?)"
    r"(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
_TOLD_CHANNEL = "final"

# Tokenizers for which thinking was switched on; the default is off, where a template knows the switch.
_THINKING: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Told:
    """Hold what was told to the user and, apart from it, what was thought."""

    text: str
    thinking: str


def set_thinking(tokenizer: Any, *, enabled: bool) -> None:
    """Switch thinking on or off for every prompt of this tokenizer, where its template knows the switch."""
    _THINKING[tokenizer] = enabled


def is_thinking(tokenizer: Any) -> bool:
    """Tell whether thinking was switched on; it is off until then."""
    return _THINKING.get(tokenizer, False)


def opened_thinking(prompt: str) -> str | None:
    """Return the tag of the thinking block that a prompt ends in, or None."""
    found = _PROMPTED.search(prompt)
    return found[1] if found and not found[2] else None


def with_prompted_thoughts(whole: str, *, prompt: str) -> str:
    """Put the thinking block that a prompt ends in back into an answered conversation.

    Some templates write such a block only before an answer that is still to come. What the model has to write
    is then the answer alone after a closed block, and the end of its thoughts before the answer after an open
    one.
    """
    found = _PROMPTED.search(prompt)
    if not found or whole.startswith(prompt) or not whole.startswith(prompt[: found.start()]):
        return whole
    answered = _EMPTY.sub("", whole[found.start() :], count=1)
    return prompt + ("" if found[2] else f"</{found[1]}>\n\n") + answered


def told(text: str, *, is_opened: bool = False) -> Told:
    """Part an answer, special tokens included or not, into what was told and what was thought.

    An answer that ends while the model still thinks tells nothing: its text is empty, which no judge scores.

    Args:
        text: What the model wrote after the prompt.
        is_opened: Whether the prompt ended in an open thinking block.
    """
    if _CHANNEL in text:
        parts = [(name, body.strip()) for name, body in _CHANNELS.findall(text)]
        return Told(
            text="\n".join(body for name, body in parts if name == _TOLD_CHANNEL),
            thinking="\n".join(body for name, body in parts if name != _TOLD_CHANNEL),
        )
    thought: list[str] = []
    if closing := _CLOSING.search(text):
        head = text[: closing.start()]
        if is_opened or not _BLOCK.search(head):
            thought.append(head)
            text = text[closing.end() :]
    elif is_opened:
        return Told(text="", thinking=text.strip())
    thought += [block for _, block in _BLOCK.findall(text)]
    shown = _BLOCK.sub("", text)
    return Told(text=shown.strip(), thinking="\n".join(part.strip() for part in thought))


def decode_told(tokenizer: Any, ids: list[int], *, is_opened: bool = False) -> Told:
    """Decode generated tokens (without the end of the turn) into what was told and what was thought."""
    raw = cast(str, tokenizer.decode(ids, skip_special_tokens=False))
    if _CHANNEL in raw:
        return told(raw)
    # Thinking tags are special tokens in some vocabularies and plain text in others: the blocks are cut from
    # the raw text first, and only then special tokens are left out.
    parted = told(raw, is_opened=is_opened)
    if not parted.thinking and not is_opened:
        text = cast(str, tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return Told(text=text, thinking="")
    return Told(text=_without_special(tokenizer, parted.text), thinking=parted.thinking)


def _without_special(tokenizer: Any, text: str) -> str:
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text.strip()

"""Find out what a chat template and its tokenizer can do, before a run depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rasa_moe.data.chats import encode_chat, render
from rasa_moe.data.rows import Message
from rasa_moe.data.thinking import is_thinking, opened_thinking, set_thinking
from rasa_moe.errors import ModelError

_SYSTEM = Message(role="system", content="Be brief.")
_QUESTION = Message(role="user", content="How are you?")
_ANSWER = "Quite well."


@dataclass(frozen=True)
class TemplateFacts:
    """Say what was found out about a chat template.

    Attributes:
        has_generation_prompt: Whether it opens the assistant's turn when asked to.
        takes_system: Whether it writes a system turn.
        takes_turns: Whether it takes a conversation of several turns.
        thinking: "none", "switchable", or "always": its prompts open a thinking block that stays open.
        has_date: Whether it writes the date; `render` fixes it.
        would_double_bos: Whether tokenising its text with special tokens would put a second one before it.
        end_token: Id of the token that ends an answer.
        prompt_tokens: Tokens of a short prompt.
        answer_tokens: Tokens of a short answer with its end.
    """

    has_generation_prompt: bool
    takes_system: bool
    takes_turns: bool
    thinking: Literal["none", "switchable", "always"]
    has_date: bool
    would_double_bos: bool
    end_token: int
    prompt_tokens: int
    answer_tokens: int


def describe_template(tokenizer: Any) -> TemplateFacts:
    """Try a template on short conversations.

    Raises:
        ModelError: There is none, or an answer changes the prompt before it.
    """
    chat = encode_chat(tokenizer, (_QUESTION,), _ANSWER)
    prompt = render(tokenizer, (_QUESTION,), add_generation_prompt=True)
    begins = tokenizer.bos_token or ""
    return TemplateFacts(
        has_generation_prompt=prompt != render(tokenizer, (_QUESTION,), add_generation_prompt=False),
        takes_system=_is_written(tokenizer, (_SYSTEM, _QUESTION), _SYSTEM["content"]),
        takes_turns=_is_written(
            tokenizer, (_QUESTION, Message(role="assistant", content=_ANSWER), _QUESTION), _ANSWER
        ),
        thinking=_thinking(tokenizer, prompt),
        has_date="strftime_now" in tokenizer.chat_template,
        would_double_bos=bool(begins)
        and prompt.startswith(begins)
        and tokenizer(prompt)["input_ids"][:2] == [tokenizer.bos_token_id] * 2,
        end_token=chat.input_ids[-1],
        prompt_tokens=chat.prompt_length,
        answer_tokens=len(chat) - chat.prompt_length,
    )


def _is_written(tokenizer: Any, messages: tuple[Message, ...], text: str) -> bool:
    try:
        return text in render(tokenizer, messages, add_generation_prompt=True)
    except ModelError:
        return False


def _thinking(tokenizer: Any, prompt: str) -> Literal["none", "switchable", "always"]:
    before = is_thinking(tokenizer)
    set_thinking(tokenizer, enabled=not before)
    try:
        other = render(tokenizer, (_QUESTION,), add_generation_prompt=True)
    finally:
        set_thinking(tokenizer, enabled=before)
    if other != prompt:
        return "switchable"
    return "always" if opened_thinking(prompt) else "none"


def template_notes(tokenizer: Any, facts: TemplateFacts, *, stop_ids: frozenset[int]) -> Iterator[str]:
    """Yield what a user should know before trusting answers.

    Args:
        tokenizer: The tokenizer.
        facts: What `describe_template` found.
        stop_ids: Tokens at which generation stops.
    """
    if not facts.has_generation_prompt:
        yield "the template has no generation prompt; answers begin right after the user's turn"
    if not facts.takes_system:
        yield "the template drops or refuses system turns; leave them out of the prompts"
    if not facts.takes_turns:
        yield "the template takes one turn only; multi-turn attacks cannot be asked"
    if facts.thinking == "switchable":
        yield "it can think; thinking is off unless the setting thinking is true"
    if facts.thinking == "always":
        yield "it always thinks; give answers room for it, and only what follows the thoughts is judged"
    if facts.has_date:
        yield "the template writes today's date; runs use a fixed one, so that they can be resumed"
    if facts.end_token not in stop_ids:
        yield (
            f"its turns end with {tokenizer.convert_ids_to_tokens(facts.end_token)!r}, at which generation "
            "does not stop, so every answer would run to the limit; add it to eos_token_id in "
            "generation_config.json"
        )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == facts.end_token:
        yield "padding and the end of a turn are the same token; masks come from lengths, so nothing is lost"

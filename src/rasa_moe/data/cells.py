"""Read what single cells of foreign tables hold: a kind, a conversation, the strings to look for in answers.

ValueError says what is wrong with a cell; the caller adds the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from rasa_moe.data.rows import KINDS, Kind, Message, check_messages
from rasa_moe.data.tables import text_of

_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
}


def kind_of(value: object, *, column: str, kinds: Mapping[str, Kind]) -> Kind:
    """Read a kind, whatever its case; `kinds` are further words for one."""
    text = text_of(value).strip()
    word = text.casefold()
    if word in kinds:
        return kinds[word]
    if word not in KINDS:
        # A blank is no kind either: what the row was meant as would only be guessed.
        said = f"the kind {text!r} is unknown" if text else f"{column} is empty"
        raise ValueError(f"{said}; choose one of {', '.join(KINDS)}")
    return cast(Kind, word)


def conversation(value: object, *, column: str) -> tuple[Message, ...]:
    """Read a prompt: a text, the user's turns as texts, or turns with roles (also those of ShareGPT)."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{column} is empty")
        return check_messages([Message(role="user", content=value)], field=column)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{column} is a {type(value).__name__}, neither text nor a list of turns")
    if all(isinstance(turn, str) for turn in value):
        return _user_turns([str(turn) for turn in value], column=column)
    turns = [_turn(turn) for turn in value]
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()  # a log keeps the answer to the attack as its last turn
    return check_messages(turns, field=column)


def _user_turns(texts: Sequence[str], *, column: str) -> tuple[Message, ...]:
    """Read the user's turns alone; what the model said between them is not known and is not made up."""
    if len(texts) != 1 or not texts[0].strip():
        raise ValueError(
            f"{column} lists {len(texts)} user turns without the answers between them; give turns with roles"
        )
    return check_messages([Message(role="user", content=texts[0])], field=column)


def _turn(turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError("mixes texts and turns with roles")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    return Message(
        role=_SHAREGPT.get(str(role), str(role)), content=content if isinstance(content, str) else ""
    )


def references(value: object) -> tuple[str, ...]:
    """Read the strings that an exact judge looks for; a blank cell has none."""
    items = [value] if isinstance(value, str) else value or []
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError("reference must be a string or a list of strings")
    return tuple(item for item in items if item.strip())

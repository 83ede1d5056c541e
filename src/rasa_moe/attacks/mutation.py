"""Change the wrapping of prompts word by word, so that a repair cannot lean on the exact words of an attack.

The operations are those that red-teamers and augmenters use: words of the wrapping are dropped, replaced,
repeated or joined by others, and a piece of another prompt may come before or after. See Wei and Zou, "EDA:
easy data augmentation" (2019), and Yu et al., "GPTFuzzer" (2023). Everything runs offline; whether a changed
attack still works is for the base model and the judge to say.

Deviation: the paper trains on jailbreaks as they were collected; `collect.mutations` 0 is its form.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rasa_moe.data.rows import PLAIN_FAMILY, Message, PromptRow

_CHANGED, _JOINED = 0.3, 0.5  # share of the wrapping's words that are changed, of prompts that get a piece
_PIECE = (3, 8)  # words
_WORD = re.compile(r"\w+")
_SPACED = re.compile(r"(\S+)(\s*)")


def with_mutations(rows: Sequence[PromptRow], *, copies: int) -> list[PromptRow]:
    """Return the rows, each wrapped request followed by copies whose last turn is changed.

    The words of the goal stay as they are. What is put in comes from the last turns of `rows`, without the
    words of any goal, so nothing enters that the rows do not hold. The same rows give the same copies.
    Prompts that hold less than half of their goal's words, as ciphers and translations do, have no copies and
    lend nothing: nobody can tell there which words are the goal.

    Args:
        rows: Harmful and harmless requests inside an attack are changed; other rows only lend their words.
        copies: Changed copies of each; 0 returns the rows alone.
    """
    if copies == 0:
        return list(rows)
    material = _Material.of(rows)
    result: list[PromptRow] = []
    for row in rows:
        result.append(row)
        if _is_wrapped(row) and _is_legible(row):
            result += (_mutated(row, number, material) for number in range(1, copies + 1))
    return result


@dataclass(frozen=True)
class _Material:
    """Hold what may be put in: texts as words."""

    texts: tuple[tuple[str, ...], ...]
    words: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[PromptRow]) -> _Material:
        goals = {word for row in rows if _is_request(row) for word in _words(row.goal)}
        texts = sorted(
            tuple(word for word in row.messages[-1]["content"].split() if not _words(word) & goals)
            for row in rows
            if not _is_request(row) or _is_legible(row)
        )
        return cls(tuple(filter(None, texts)), tuple(word for text in texts for word in text))


def _mutated(row: PromptRow, number: int, material: _Material) -> PromptRow:
    draw = random.Random(f"{row.id} {number}")
    kept = _words(row.goal)
    words: list[str] = []  # each with the space behind it, so that lines stay lines
    for word, space in _SPACED.findall(row.messages[-1]["content"]):
        is_kept = bool(_words(word) & kept) or draw.random() >= _CHANGED
        *before, last = [word] if is_kept else _changed(word, material, draw) or [""]
        words += [f"{one} " for one in before] + ([last + (space or " ")] if last else [])
    if material.texts and draw.random() < _JOINED:
        piece = [f"{word} " for word in _piece(draw.choice(material.texts), draw)]
        words = piece + words if draw.random() < 0.5 else words + piece
    # A prompt of one encoded word may lose it, and would have nothing left.
    content = "".join(words).strip() or row.messages[-1]["content"]
    turn = Message(role=row.messages[-1]["role"], content=content)
    return replace(row, id=f"{row.id}~{number}", messages=(*row.messages[:-1], turn))


def _changed(word: str, material: _Material, draw: random.Random) -> list[str]:
    other = draw.choice(material.words) if material.words else word
    return draw.choice(([], [other], [other, word], [word, word]))


def _piece(text: tuple[str, ...], draw: random.Random) -> tuple[str, ...]:
    length = draw.randint(*_PIECE)
    start = draw.randint(0, max(0, len(text) - length))
    return text[start : start + length]


def _is_request(row: PromptRow) -> bool:
    return row.kind in ("harmful", "harmless")


def _is_wrapped(row: PromptRow) -> bool:
    return _is_request(row) and row.family != PLAIN_FAMILY


def _is_legible(row: PromptRow) -> bool:
    goal = _words(row.goal)
    said = {word for turn in row.messages if turn["role"] == "user" for word in _words(turn["content"])}
    return 2 * len(goal & said) >= len(goal)


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}

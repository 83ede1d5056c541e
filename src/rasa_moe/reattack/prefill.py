"""Put the beginning of a harmful answer into the model's mouth and let it go on.

The words come from the base model's own harmful answer to the same goal. They stop before the first thing
that the judge looks for: what the attacker wrote must not be counted as the model's harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rasa_moe.data.chats import EncodedChat, encode_chat
from rasa_moe.data.rows import PromptRow
from rasa_moe.judges.exact import contains_words
from rasa_moe.reattack.base import WITHOUT_IT, Attack, Effort, Measured, Target


def harmless_opening(tokenizer: Any, row: PromptRow, answer: str, *, limit: int) -> list[int]:
    """Return the first tokens of a harmful answer, at most `limit`, that give away none of the references."""
    chat = encode_chat(tokenizer, row.messages, answer)
    tokens = chat.input_ids[chat.prompt_length :]
    firsts = [word for reference in row.reference for word in reference.split()[:1]]

    def text(length: int) -> str:
        return str(tokenizer.decode(tokens[:length], skip_special_tokens=True))

    # The token after the opening may finish a reference's first word, so whole prefixes are looked at.
    length = 0
    while length < len(tokens) - 1 and not any(contains_words(text(length + 1), word) for word in firsts):
        length += 1
    if length < len(tokens) - 1:
        # A tokenizer of subwords may have begun that word some tokens before.
        whole = text(length + 1).casefold()
        start = max(whole.rfind(word.casefold()) for word in firsts if contains_words(whole, word))
        while length and 0 <= start < len(text(length)):
            length -= 1
    return tokens[: min(limit, length)]


def harmful_answers(target: Target, rows: Sequence[PromptRow]) -> list[tuple[PromptRow, str]]:
    """Return the rows whose goal the base model gave a harmful answer to, with that answer."""
    found = []
    for row in rows:
        same_goal = (row, *target.wrapped.get(row.goal, ()))
        answers = [target.base_answers[one.id] for one in same_goal if one.id in target.base_answers]
        if answers:
            found.append((row, answers[0]))
    return found


def _run(target: Target, effort: Effort) -> Iterator[Measured]:
    for setting, rows in (("jailbreaks", target.rows), ("plain requests", target.plain)):
        known = harmful_answers(target, rows)
        if not known:
            continue
        for limit in (0, *effort.prefixes):
            prompts = [begun(target.tokenizer, row, answer, limit=limit) for row, answer in known]
            outcomes = target.ask([row for row, _ in known], prompts=prompts)
            named = setting if limit else f"{setting}, {WITHOUT_IT}"
            yield Measured(setting=named, strength=limit, unit="tokens", outcomes=outcomes)


def begun(tokenizer: Any, row: PromptRow, answer: str, *, limit: int) -> EncodedChat:
    """Return a prompt with the beginning of a harmful answer, as `harmless_opening` cuts it."""
    prompt = encode_chat(tokenizer, row.messages)
    opening = harmless_opening(tokenizer, row, answer, limit=limit)
    return EncodedChat(input_ids=[*prompt.input_ids, *opening], prompt_length=prompt.prompt_length)


ATTACK = Attack(
    "prefill",
    "Begin the answer with the base model's own harmful one, up to its first harmful word; needs no weights.",
    lambda effort: f"no search; up to {max(effort.prefixes)} tokens",
    _run,
)

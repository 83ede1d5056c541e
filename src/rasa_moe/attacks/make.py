"""Turn goals and attacks into prompt rows that a run reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from rasa_moe.attacks.base import FREE, Attack, Chat, Cost
from rasa_moe.data.rows import PLAIN_FAMILY, Message, PromptRow
from rasa_moe.errors import ConfigError, DataError
from rasa_moe.progress import Progress, no_progress


@dataclass(frozen=True)
class Made:
    """Hold the rows that were made, and why others could not be."""

    rows: tuple[PromptRow, ...]
    failures: tuple[str, ...]


def plan(rows: Iterable[PromptRow], attacks: Sequence[Attack]) -> Cost:
    """Return what `make_rows` will cost, before it is spent."""
    goals = [row.goal for row in plain_rows(rows)]
    return sum((attack.cost(goal) for attack in attacks for goal in goals), FREE)


def plain_rows(rows: Iterable[PromptRow]) -> Iterator[PromptRow]:
    """Yield the rows that attacks are put around: plain requests, harmful and harmless, one a goal."""
    seen: set[tuple[str, str]] = set()
    for row in rows:
        is_request = row.kind in ("harmful", "harmless") and row.family == PLAIN_FAMILY
        if is_request and (row.kind, row.goal) not in seen:
            seen.add((row.kind, row.goal))
            yield row


def make_rows(
    rows: Sequence[PromptRow],
    attacks: Sequence[Attack],
    *,
    seed: int = 0,
    chat: Chat | None = None,
    concurrency: int = 1,
    progress: Progress = no_progress,
) -> Made:
    """Wrap every plain request in every attack; harmless ones too, as the wrapped-benign control.

    Args:
        rows: Requests; a wrapped row keeps its goal, kind and split.
        attacks: The wrappers.
        seed: Chooses among variants.
        chat: The attacker's model, for attacks that a model writes.
        concurrency: Prompts that are written at the same time.
        progress: Called after every row.

    Raises:
        ConfigError: There is no plain request to wrap.
        ModelError: The attacker cannot be reached.
    """
    requests = list(plain_rows(rows))
    if not requests:
        raise ConfigError("there is no plain request to put an attack around; give rows of family 'plain'")
    work = [(attack, request) for attack in attacks for request in requests]

    def one(pair: tuple[Attack, PromptRow]) -> PromptRow | str:
        attack, request = pair
        try:
            return _wrapped(request, attack, attack.wrap(request.goal, seed=seed, chat=chat))
        except DataError as error:
            return f"{attack.name}, {request.id}: {error}"

    results: list[PromptRow | str] = []
    pool = ThreadPoolExecutor(max_workers=concurrency)
    try:
        for result in pool.map(one, work):
            results.append(result)
            progress("attack", len(results), len(work))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return Made(
        rows=tuple(result for result in results if isinstance(result, PromptRow)),
        failures=tuple(result for result in results if isinstance(result, str)),
    )


def _wrapped(request: PromptRow, attack: Attack, messages: tuple[Message, ...]) -> PromptRow:
    digest = hashlib.sha256(f"{request.kind}\n{request.goal}".encode()).hexdigest()[:8]
    return replace(
        request,
        id=f"{attack.name}-{request.id}-{digest}",
        family=attack.name,
        group=attack.group,
        messages=messages,
    )

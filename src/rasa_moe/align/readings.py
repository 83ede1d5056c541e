"""What trainings read before they learn, read once where they share rows and settings.

Methods that are compared see the same chats, and a repair measures the base model before it changes it. For
small models that takes a quarter of a training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

from rasa_moe.collect.stage import RetainRow
from rasa_moe.data.rows import Pair
from rasa_moe.files import sha256_json

T = TypeVar("T")


class Read(Protocol):
    """Return what `make` reads of the base model on a training's batches, or what another training has read.

    `facts`, as JSON, is everything that decides it beside the batches.
    """

    def __call__(self, kind: str, make: Callable[[], T], facts: Any = None) -> T:
        """See the class."""
        ...


def read_now(kind: str, make: Callable[[], T], facts: Any = None) -> T:
    """Read for one training alone."""
    return make()


class BaseReadings:
    """Keep what trainings read of one base model, for those that follow on the same rows.

    Give one object to trainings of one model, with its base weights, and one tokenizer. What another training
    read under other settings is never taken.

    Args:
        most: How many readings of a kind are kept; the one that was longest unused goes first. Final hidden
            states and recorded routing take as much memory as a training itself holds of them.
    """

    def __init__(self, *, most: int = 1) -> None:
        self._most = most
        self._kept: dict[str, OrderedDict[str, Any]] = {}

    def read(
        self,
        kind: str,
        make: Callable[[], T],
        *,
        pairs: Sequence[Pair],
        retain: Sequence[RetainRow],
        facts: Any,
    ) -> T:
        """Return a reading, made now unless one of this kind with the same rows and facts is kept.

        Args:
            kind: What is read.
            make: Reads it.
            pairs: Rows that it is read on.
            retain: The same.
            facts: Everything beside them, model and tokenizer that decides it, as JSON.
        """
        rows = [[vars(row) for row in some] for some in (pairs, retain)]
        kept, key = self._kept.setdefault(kind, OrderedDict()), sha256_json([rows, facts])
        if key not in kept:
            kept[key] = make()
        kept.move_to_end(key)
        while len(kept) > self._most:
            kept.popitem(last=False)
        return cast(T, kept[key])

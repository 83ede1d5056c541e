"""What a rival method is: a function from the same data to other weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rasa_moe.align.loop import LogLine
from rasa_moe.collect.stage import RetainRow
from rasa_moe.config import Config
from rasa_moe.data.rows import Pair
from rasa_moe.moe import MoeMap
from rasa_moe.progress import Progress


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuned:
    """Hold what a rival method made of the model.

    Attributes:
        tensors: Parameter name -> whole tensor, for every parameter that may differ from the base model.
        log: As in `Alignment`.
    """

    tensors: dict[str, Tensor]
    log: tuple[LogLine, ...]


class Rival(Protocol):
    """Train a rival; the model is left as it was."""

    def __call__(
        self,
        model: Any,
        tokenizer: Any,
        moe: MoeMap,
        *,
        pairs: Sequence[Pair],
        retain: Sequence[RetainRow],
        config: Config,
        checkpoint_path: Path | None,
        progress: Progress,
    ) -> Tuned:
        """Return the tuned weights and the log of the training."""
        ...

"""What can be trained: owners of weights that the optimiser steps, beside the model or in its place."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from torch import Tensor, nn


class Stateful(Protocol):
    """Something that can give and take its trained weights as plain tensors."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the trained tensors."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over tensors returned by `state_dict`."""
        ...


class Trainable(Stateful, Protocol):
    """A part of a model that learns while it is open, and is written into the model by `merge`."""

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser steps, always in the same order."""
        ...

    def merge(self) -> None:
        """Write the trained values into the model, in its dtype."""
        ...

    def __enter__(self) -> Self:
        """Let the model compute with the trained values, and nothing else want a gradient."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the model want the gradients it wanted before."""
        ...


class RepairPart(Trainable, Protocol):
    """A part of a model that RASA trains, and that knows how far its weights in the model moved."""

    def change_since(self, state: dict[str, Tensor]) -> float:
        """Return ||weights - weights then|| / ||weights then||, then being when `state_dict` was `state`."""
        ...

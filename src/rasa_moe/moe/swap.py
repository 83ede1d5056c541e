"""Put other weights into a model for a while: how tuned models and mixtures with the base are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rasa_moe.errors import ModelError
from rasa_moe.moe.sharding import is_sharded, whole, write_rows


@dataclass(frozen=True, eq=False)
class Piece:
    """Hold what one tensor of another model has where this model may have something else.

    Attributes:
        name: Of the parameter or buffer.
        rows: k rows of a fused expert tensor, ascending; None for the whole tensor.
        values: (k,...), or the whole tensor; on any device, of any dtype.
    """

    name: str
    rows: list[int] | None
    values: Tensor

    def some(self, places: list[int]) -> Piece:
        """Return a part of it: those of its rows at `places`."""
        rows = places if self.rows is None else [self.rows[place] for place in places]
        return Piece(self.name, rows, self.values[places])


def pieces_of(tensors: Mapping[str, Tensor]) -> list[Piece]:
    """Return whole tensors as pieces."""
    return [Piece(name, None, tensor) for name, tensor in tensors.items()]


@torch.no_grad()
def differing(model: nn.Module, pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield of some pieces what the model has not got already, copied to its dtype and device.

    One tensor at a time is compared, so a model that hardly differs takes hardly any memory beside this one.
    Processes that share weights must call this together, and hold the same pieces.

    Raises:
        ModelError: A name is unknown or a shape differs.
    """
    own = named_tensors(model)
    for piece in pieces:
        if piece.name not in own:
            raise _of_another_model(piece, "no such parameter")
        mine = whole(own[piece.name])
        mine = mine if piece.rows is None else mine[piece.rows]
        if mine.shape != piece.values.shape:
            raise _of_another_model(piece, tuple(mine.shape))
        values = piece.values.detach().to(mine.device, mine.dtype)
        differs = mine != values
        if not bool(differs.any()):
            continue
        of_rows = differs.flatten(1).any(dim=1) if differs.dim() == 3 else None
        if of_rows is None or bool(of_rows.all()):
            is_given = values.data_ptr() == piece.values.data_ptr()
            yield Piece(piece.name, piece.rows, values.clone() if is_given else values)
        else:
            yield Piece(piece.name, piece.rows, values).some(of_rows.nonzero().flatten().tolist())


class Swap:
    """Hold what a model lacks to be another, and exchange it for what the model has.

    A second exchange gives the model back, bit for bit. Nothing else may change these tensors in between.

    Args:
        model: The model.
        pieces: Of `differing`, no two of which overlap; their values are written into.
    """

    def __init__(self, model: nn.Module, pieces: Iterable[Piece]) -> None:
        self._model = model
        self._pieces = tuple(pieces)
        self.is_in = False

    @torch.no_grad()
    def exchange(self) -> None:
        """Give the model the held values, and hold its own; after an error the model is as before."""
        done = 0
        try:
            for part in self._parts():
                part.exchange()
                done += 1
        except BaseException:
            for part in islice(self._parts(), done):
                part.exchange()
            raise
        self.is_in = not self.is_in

    def _parts(self) -> Iterator[_Part | _SharedPart]:
        """Yield what is exchanged at once: a tensor, or one expert's rows of a fused one."""
        tensors = named_tensors(self._model)
        buffer = torch.empty(0)
        for piece in self._pieces:
            tensor, held = tensors[piece.name], piece.values
            if is_sharded(tensor):
                yield _SharedPart(tensor, piece)
                continue
            rows = range(len(tensor)) if piece.rows is None else piece.rows
            views = zip((tensor[row] for row in rows), held, strict=True)
            for own, theirs in views if tensor.dim() == 3 else ((tensor, held),):
                # One buffer for all rows alike: memory for each would be mapped and cleared anew.
                if (buffer.shape, buffer.dtype, buffer.device) != (own.shape, own.dtype, own.device):
                    buffer = torch.empty_like(own)
                yield _Part(own, theirs, buffer)


class _Part(NamedTuple):
    """Two tensors alike, and a third that takes the values of one while it is written."""

    own: Tensor
    held: Tensor
    buffer: Tensor

    def exchange(self) -> None:
        """Exchange the values; after an error, Ctrl-C for one, both are as before."""
        is_kept = False
        try:
            self.buffer.copy_(self.own)
            is_kept = True
            self.own.copy_(self.held)
            self.held.copy_(self.buffer)
        except BaseException:
            if is_kept:
                if torch.equal(self.held, self.buffer):
                    self.held.copy_(self.own)
                self.own.copy_(self.buffer)
            raise


class _SharedPart(NamedTuple):
    """A tensor of which every process holds a share, and a piece of it that every process holds whole."""

    tensor: Tensor
    piece: Piece

    def exchange(self) -> None:
        """Exchange the values."""
        own = whole(self.tensor)
        own = own.clone() if self.piece.rows is None else own[self.piece.rows]
        write_rows(self.tensor, self.piece.rows, self.piece.values)
        self.piece.values.copy_(own)


@contextmanager
def swapped(model: nn.Module, pieces: Iterable[Piece]) -> Iterator[None]:
    """Use what some pieces hold for a while; the model's own comes back bit for bit.

    Raises:
        ModelError: A name is unknown or a shape differs.
    """
    swap = Swap(model, differing(model, pieces))
    swap.exchange()
    try:
        yield
    finally:
        swap.exchange()


@contextmanager
def put_back_after(model: nn.Module, names: Sequence[str] | None = None) -> Iterator[None]:
    """Give tensors (all, if none is named) the values back that they have now, whatever training does.

    Meanwhile their values are held on the CPU.
    """
    own = copies(model, list(named_tensors(model)) if names is None else names)
    try:
        yield
    finally:
        tensors = named_tensors(model)
        with torch.no_grad():
            for name, values in own.items():
                tensors[name].copy_(values)


def copies(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return parameters and buffers by name, copied to the CPU."""
    tensors = named_tensors(model)
    return {name: tensors[name].detach().to("cpu", copy=True) for name in names}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name; routers may keep a selection bias as a buffer."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _of_another_model(piece: Piece, found: object) -> ModelError:
    return ModelError(
        f"Cannot use a tensor of shape {tuple(piece.values.shape)} as {piece.name} ({found}); "
        "these weights belong to another model."
    )

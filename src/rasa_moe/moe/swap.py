"""Put other weights into a model for a while: how tuned models and mixtures with the base are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rasa_moe.errors import ModelError
from rasa_moe.moe.sharding import is_sharded, whole, write_rows

# Values of an expert's matrix from which on they are exchanged one by one; small ones cost less together.
_LARGE = 1 << 16


@dataclass(frozen=True, eq=False)
class Piece:
    """Hold what one tensor of another model has where this model may have something else.

    Attributes:
        name: Of the parameter or buffer.
        rows: k rows of it, ascending; None for the whole tensor.
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
    own = _tensors(model)
    for piece in pieces:
        if piece.name not in own:
            raise _of_another_model(piece, "no such parameter")
        mine = whole(own[piece.name])
        mine = mine if piece.rows is None else mine[piece.rows]
        if mine.shape != piece.values.shape:
            raise _of_another_model(piece, tuple(mine.shape))
        values = piece.values.detach().to(mine.device, mine.dtype)
        differs = (mine != values).reshape(mine.shape or (1,))
        differs = differs.flatten(1).any(dim=1) if differs.dim() > 1 else differs
        if bool(differs.all()):
            is_given = values.data_ptr() == piece.values.data_ptr()
            yield Piece(piece.name, piece.rows, values.clone() if is_given else values)
        elif bool(differs.any()):
            yield Piece(piece.name, piece.rows, values).some(differs.nonzero().flatten().tolist())


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
        """Give the model the held values, and hold its own; on an error, the model is as before."""
        tensors = _tensors(self._model)
        done = 0
        try:
            for piece in self._pieces:
                _exchange(tensors[piece.name], piece)
                done += 1
        except BaseException:
            for piece in self._pieces[:done]:
                _exchange(tensors[piece.name], piece)
            raise
        self.is_in = not self.is_in


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
    own = copies(model, list(_tensors(model)) if names is None else names)
    try:
        yield
    finally:
        tensors = _tensors(model)
        with torch.no_grad():
            for name, values in own.items():
                tensors[name].copy_(values)


def copies(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return parameters and buffers by name, copied to the CPU."""
    tensors = _tensors(model)
    return {name: tensors[name].detach().to("cpu", copy=True) for name in names}


def _exchange(tensor: Tensor, piece: Piece) -> None:
    """Exchange what a tensor has for what a piece holds, in the memory of both."""
    rows, held = piece.rows, piece.values
    is_large = tensor.dim() == 3 and tensor.shape[1:].numel() >= _LARGE
    if is_large and not is_sharded(tensor):
        # Expert by expert: memory for all of them would be mapped and cleared anew each time.
        buffer = torch.empty_like(tensor[0])
        for place, row in enumerate(range(len(tensor)) if rows is None else rows):
            buffer.copy_(tensor[row])
            tensor[row].copy_(held[place])
            held[place].copy_(buffer)
        return
    own = whole(tensor)
    own = own.clone() if rows is None else own[rows]
    write_rows(tensor, rows, held)
    held.copy_(own)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _of_another_model(piece: Piece, found: object) -> ModelError:
    return ModelError(
        f"Cannot use a tensor of shape {tuple(piece.values.shape)} as {piece.name} ({found}); "
        "these weights belong to another model."
    )

"""One run on several processes that torchrun started; a single process is a world of size 1.

Every process runs the same code on the same rows. Where work can be shared, `part` and `own_rows` say what is
one's own, and `gather`, `in_order` and `whole_rows` give everybody the whole, in the order asked. Only the
first process writes files and speaks.

Losses are computed from the whole batch by every process, while gradient flows through one's own rows only.
`whole_rows` scales that gradient by the number of processes, so that the mean over processes is the gradient
of the whole batch, whether a loss shares its rows or every process computes all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle, islice
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from rasa_moe.errors import RunError

Item = TypeVar("Item")

# The first process may judge, bootstrap or hash for long while the others wait for it.
_PATIENCE = timedelta(hours=6)
_alike = False


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        is_alike: Whether all of them work on the same rows, each on its piece of every layer.
    """

    rank: int = 0
    size: int = 1
    is_alike: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def _deals(self) -> bool:
        return self.size > 1 and not self.is_alike

    def part(self, items: Sequence[Item]) -> list[Item]:
        """Return this process' share of some items: as many for every process, so a few may come twice."""
        if not self._deals:
            return list(items)
        padded = islice(cycle(items), -(-len(items) // self.size) * self.size)
        return list(islice(padded, self.rank, None, self.size))

    def gather(self, mine: dict[int, Any]) -> dict[int, Any]:
        """Return the numbered JSON values of all processes together."""
        if not self._deals:
            return mine
        together: dict[int, Any] = {}
        for text in self._texts(json.dumps(list(mine.items()))):
            together |= dict(json.loads(text))
        return together

    def in_order(self, rows: Tensor, places: Sequence[int], *, total: int) -> Tensor:
        """Return rows (total,...) of which every process computed some, in their places.

        Args:
            rows: (n,...), what this process computed; n may differ between processes.
            places: Where each stands; places of several processes together are 0..total-1.
            total: Number of rows of all processes.
        """
        at = torch.tensor(places, dtype=torch.int64, device=rows.device)
        whole = rows.new_zeros((total, *rows.shape[1:]))
        everybody = zip(self._ragged(at), self._ragged(rows), strict=True) if self._deals else [(at, rows)]
        for other_at, other_rows in everybody:
            whole[other_at] = other_rows
        return whole

    def own_rows(self, whole: Tensor) -> Tensor:
        """Return this process' rows of a batch (B,...): as many for every process, padded with first rows."""
        if not self._deals:
            return whole
        num_rows = len(whole)
        padded = -(-num_rows // self.size) * self.size
        return whole[torch.arange(self.rank, padded, self.size, device=whole.device) % num_rows]

    def whole_rows(self, own: Tensor, *, total: int) -> Tensor:
        """Return the rows (total,...) of a batch that `own_rows` dealt out; gradient reaches one's own."""
        if not self._deals:
            return own
        whole: Tensor = _WholeRows.apply(own, self, total)  # type: ignore[no-untyped-call]
        return whole

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the mean of all processes' gradients; those that nobody has become None.

        Shares of sharded parameters hold the mean already. It is 0 everywhere, and as good as none, where no
        token of any process chose the experts they belong to.
        """
        if not self._deals:
            return
        with _answered():
            has_gradient = torch.tensor(
                [_has_gradient(parameter) for parameter in parameters], dtype=torch.int8
            )
            distributed.all_reduce(has_gradient, op=distributed.ReduceOp.MAX)
            for parameter, is_wanted in zip(parameters, has_gradient.tolist(), strict=True):
                if not is_wanted:
                    parameter.grad = None
                elif not isinstance(parameter, DTensor):
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.size

    def once(self, work: Callable[[], Item]) -> Item:
        """Let the first process do something; everybody waits and gets its result, a JSON value."""
        if self.size == 1:
            return work()
        result = work() if self.is_first else None
        answer: Item = json.loads(self._texts(json.dumps(result))[0])
        return answer

    def _texts(self, text: str) -> list[str]:
        letters = torch.frombuffer(bytearray(text.encode("utf-8")), dtype=torch.uint8)
        return [bytes(other.tolist()).decode("utf-8") for other in self._ragged(letters)]

    def _ragged(self, mine: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, which may differ in their number of rows."""
        if self.size == 1:
            return [mine]
        with _answered():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            distributed.all_gather(lengths, torch.tensor([len(mine)]))
            longest = max(int(length) for length in lengths)
            padded = mine.new_zeros((longest, *mine.shape[1:]))
            padded[: len(mine)] = mine
            everybody = [torch.empty_like(padded) for _ in range(self.size)]
            distributed.all_gather(everybody, padded)
        return [rows[: int(length)] for rows, length in zip(everybody, lengths, strict=True)]


def current() -> World:
    """Return the world this process is in; a world of its own unless `joined` is open."""
    if not distributed.is_available() or not distributed.is_initialized():
        return World()
    return World(distributed.get_rank(), distributed.get_world_size(), is_alike=_alike)


@contextmanager
def working_alike() -> Iterator[None]:
    """Give every process all rows, as tensor parallelism wants it."""
    global _alike
    before, _alike = _alike, True
    try:
        yield
    finally:
        _alike = before


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started: gloo for CPUs, nccl where there is CUDA.

    Raises:
        RunError: The others cannot be reached.
    """
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _answered():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if has_cuda else "gloo", timeout=_PATIENCE)
    try:
        yield current()
    finally:
        distributed.destroy_process_group()


@contextmanager
def _answered() -> Iterator[None]:
    """Turn the end of another process into one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "Another process of this run has ended or cannot be reached; see its message, then give the same "
            "command again."
        ) from error


def _has_gradient(parameter: nn.Parameter) -> bool:
    if isinstance(parameter.grad, DTensor):
        return bool(parameter.grad.to_local().any())
    return parameter.grad is not None


class _WholeRows(torch.autograd.Function):
    """Gather rows that were dealt out in turn; send the gradient back to one's own rows, times the size."""

    @staticmethod
    def forward(context: Any, own: Tensor, world: World, total: int) -> Tensor:
        context.world, context.total = world, total
        return torch.stack(world._ragged(own.contiguous()), dim=1).flatten(0, 1)[:total]

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        world, total, (gradient,) = context.world, context.total, gradients
        padded = gradient.new_zeros((-(-total // world.size) * world.size, *gradient.shape[1:]))
        padded[:total] = gradient
        return padded[world.rank :: world.size] * world.size, None, None

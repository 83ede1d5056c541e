"""One epoch of training, whatever is trained: the only place that steps an optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rasa_moe.align.batches import TrainingBatch
from rasa_moe.align.optimizers import set_rate
from rasa_moe.distributed import current
from rasa_moe.errors import TrainingError
from rasa_moe.moe.sharding import whole

LogLine = dict[str, Any]
Summand = tuple[Tensor, Mapping[str, Tensor]]
"""What one forward pass adds to (the loss to minimise, the named scalars to log)."""
Compute = Callable[[TrainingBatch, int], Generator[Summand]]
"""(batch, its index) -> summands; each goes backward before the next is computed, so one graph is held."""


@dataclass
class TrainingLog:
    """Collect one line a step, how far each phase moved what it trains, and where one ended early."""

    method: str
    lines: list[LogLine] = field(default_factory=list)

    def step(
        self, *, phase: str, round_number: int, lr: float, grad_norm: float, losses: Mapping[str, float]
    ) -> None:
        """Add the line of one optimiser step."""
        number = sum("step" in line and line["phase"] == phase for line in self.lines)
        self.lines.append(
            {
                "method": self.method,
                "phase": phase,
                "round": round_number,
                "step": number,
                **losses,
                "grad_norm": grad_norm,
                "lr": lr,
            }
        )

    def moved(self, *, phase: str, round_number: int, relative_change: Mapping[str, float]) -> None:
        """Add how far a phase moved its weights: norm of the change over the norm before."""
        self.lines.append(
            {
                "method": self.method,
                "phase": phase,
                "round": round_number,
                "event": "moved",
                "relative_change": dict(relative_change),
            }
        )

    def ended(self, *, phase: str, round_number: int, mean_loss: float) -> None:
        """Add that a phase has reached its goal, so that what is left of it in this round is not run."""
        self.lines.append(
            {
                "method": self.method,
                "phase": phase,
                "round": round_number,
                "event": "ended",
                "mean_loss": mean_loss,
            }
        )

    def has_ended(self, *, phase: str, round_number: int) -> bool:
        """Tell whether `ended` was noted; the log is part of a checkpoint, so a resumed run agrees."""
        return any(
            (line.get("event"), line["phase"], line["round"]) == ("ended", phase, round_number)
            for line in self.lines
        )


def run_epoch(
    batches: Sequence[TrainingBatch],
    order: Sequence[int],
    compute: Compute,
    *,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    log: TrainingLog,
    phase: str,
    round_number: int,
    on_step: Callable[[], None],
    rates: tuple[float, float] | None = None,
) -> float:
    """Take one optimiser step a batch and return the mean loss.

    `rates` are the learning rates at the epoch's first step and after its last, with a straight line between;
    None leaves the optimiser's own.

    Raises:
        TrainingError: The loss or its gradient is no longer a number; the weights before this step are kept.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total = 0.0
    optimizer.zero_grad(set_to_none=True)
    for step, index in enumerate(order):
        if rates is not None:
            set_rate(optimizer, rates[0] + (rates[1] - rates[0]) * step / len(order))
        lr = optimizer.param_groups[0]["lr"]
        with closing(compute(batches[index], index)) as summands:
            losses = _backward(summands)
        current().average_gradients(parameters)
        norm = float(whole(nn.utils.clip_grad_norm_(parameters, max_grad_norm)))
        # A gradient may overflow where the loss did not.
        for what, value in (("loss", losses["loss"]), ("gradient", norm)):
            if not math.isfinite(value):
                optimizer.zero_grad(set_to_none=True)
                raise TrainingError(
                    f"The {what} became {value} in {log.method} {phase}, round {round_number}; "
                    f"lower the learning rate (now {lr:g}) and start again in a new run directory."
                )
        optimizer.step()
        # At once, so that no gradient takes room in the next forward.
        optimizer.zero_grad(set_to_none=True)
        log.step(phase=phase, round_number=round_number, lr=lr, grad_norm=norm, losses=losses)
        total += losses["loss"]
        on_step()
    return total / len(order)


def _backward(summands: Iterator[Summand]) -> dict[str, float]:
    """Add the gradients of all summands to the parameters and return the sums to log."""
    sums: dict[str, Tensor] = {}
    for loss, named in summands:
        for name, scalar in {"loss": loss, **named}.items():
            sums[name] = sums[name] + scalar.detach() if name in sums else scalar.detach()
        # No token of a pass may have chosen a trained expert.
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    return {name: float(value) for name, value in sums.items()}

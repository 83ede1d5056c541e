"""One training for every rival: which weights, which loss, which batches; everything else is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import count
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from rasa_moe.align.batches import TrainingBatch, epoch_order
from rasa_moe.align.checkpoint import Checkpoint
from rasa_moe.align.loop import Compute, LogLine, TrainingLog, run_epoch
from rasa_moe.align.optimizers import adamw
from rasa_moe.align.rivals.base import Job, Tuned, require_float32
from rasa_moe.align.supervised import SupervisedLoss
from rasa_moe.align.trainable import Trainable
from rasa_moe.moe import checkpointed, copies, put_back_after
from rasa_moe.moe.slices import freeze, relative_change, unfreeze

_SELECTED = "[selected]"


class Weights(Trainable, Protocol):
    """What a method trains; its names are those of the model's parameters."""

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return what the optimiser steps; a name ends in "[selected]" where only some rows are."""
        ...


class AllWeights:
    """Every parameter of a model, trained in place.

    Raises:
        ModelError: The model is not in fp32.
    """

    def __init__(self, model: Any, *, method: str) -> None:
        require_float32(model, method=method)
        self._model = model
        self._required_grad: dict[str, bool] = {}

    def __enter__(self) -> Self:
        self._required_grad = freeze(self._model)
        self._model.requires_grad_(True)
        return self

    def __exit__(self, *exception: Any) -> None:
        unfreeze(self._model, self._required_grad)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the model's own parameters with their names."""
        return list(self._model.named_parameters())

    def parameters(self) -> list[nn.Parameter]:
        """Return the model's own parameters."""
        return list(self._model.parameters())

    def merge(self) -> None:
        """Do nothing: the model learns itself."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of all parameters, on the CPU."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over parameters saved by `state_dict`."""
        for name, parameter in self.named_parameters():
            parameter.copy_(state[name])


def supervised(job: Job, *, weights: Mapping[str, float] | None = None) -> Compute:
    """Return the loss of RASA's repair: cross-entropy of the refusals and of what is retained, by weight.

    Args:
        job: Names the model, and the weights unless others are given.
        weights: Part of a batch -> its weight.
    """
    chosen = job.part_weights if weights is None else weights
    return SupervisedLoss(job.model, (), weights=chosen, batch_tokens=job.config.align.batch_tokens)


def train(
    job: Job,
    *,
    method: str,
    weights: Weights,
    loss: Compute,
    batches: Sequence[TrainingBatch],
    epochs: int,
    lr: float,
    begin_epoch: Callable[[int], None] = lambda epoch: None,
) -> Tuned:
    """Train weights that go by the names of the model's parameters; the model is left as it was.

    Args and errors: as in `learn`.
    """
    names = [name.removesuffix(_SELECTED) for name, _ in weights.named_parameters()]
    with put_back_after(job.model, names):
        log = learn(
            job,
            method=method,
            weights=weights,
            loss=loss,
            batches=batches,
            epochs=epochs,
            lr=lr,
            begin_epoch=begin_epoch,
        )
        weights.merge()
        return Tuned(tensors=copies(job.model, names), log=log)


def learn(
    job: Job,
    *,
    method: str,
    weights: Trainable,
    loss: Compute,
    batches: Sequence[TrainingBatch],
    epochs: int,
    lr: float,
    begin_epoch: Callable[[int], None] = lambda epoch: None,
) -> tuple[LogLine, ...]:
    """Run the epochs that are not done yet and return the log.

    Args:
        job: Settings, and where to write checkpoints.
        method: Name in the log.
        weights: What is trained; keeps what it learnt.
        loss: (batch, its index) -> summands of its loss.
        batches: One optimiser step each.
        epochs: How often each is seen.
        lr: Of AdamW.
        begin_epoch: Told the number of every epoch before it, for losses with a schedule.

    Raises:
        TrainingError: The loss is no longer a number.
    """
    config, log = job.config.align, TrainingLog(method)
    optimizer = adamw([(weights.parameters(), 1.0)], lr=lr, config=config)
    done, checkpoint = 0, None
    if job.checkpoint_path is not None:
        checkpoint = Checkpoint(
            job.checkpoint_path,
            identity=job.identity(method),
            trained={method: weights},
            optimizers={method: optimizer},
        )
        done, log.lines = checkpoint.load()
    for epoch in range(done, epochs):
        before = weights.state_dict()
        steps = count(epoch * len(batches) + 1)
        begin_epoch(epoch)
        with weights, checkpointed(job.model) if config.gradient_checkpointing else nullcontext():
            run_epoch(
                batches,
                epoch_order(len(batches), seed=job.config.seed, epoch=epoch),
                loss,
                optimizer=optimizer,
                max_grad_norm=config.max_grad_norm,
                log=log,
                phase=method,
                round_number=epoch,
                rates=_rates(lr, epoch, epochs) if config.lr_decay else None,
                on_step=lambda steps=steps: job.progress(method, next(steps), epochs * len(batches)),  # type: ignore[misc]
            )
        after = weights.state_dict()
        change = relative_change((tensor, after[name]) for name, tensor in before.items())
        log.moved(phase=method, round_number=epoch, relative_change={"trained weights": change})
        if checkpoint is not None:
            checkpoint.save(phases_done=epoch + 1, log=log.lines)
    return tuple(log.lines)


def _rates(lr: float, epoch: int, epochs: int) -> tuple[float, float]:
    """Return the learning rate at the beginning and the end of an epoch: a straight line to 0, as in RASA."""
    return lr * (1 - epoch / epochs), lr * (1 - (epoch + 1) / epochs)

"""What a rival method is: a function from the same data to other weights, or to another way of answering."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rasa_moe.align.batches import TrainingBatch, batches_for
from rasa_moe.align.loop import LogLine
from rasa_moe.align.readings import BaseReadings
from rasa_moe.align.supervised import part_weights
from rasa_moe.collect.stage import RetainRow
from rasa_moe.config import Config, learning_rate, setting
from rasa_moe.data.rows import Pair
from rasa_moe.errors import ConfigError, ModelError
from rasa_moe.files import sha256_json
from rasa_moe.moe import ExpertPatch, MoeMap, copies, pieces_of, steer, swapped
from rasa_moe.progress import Progress, no_progress

STEERING = "rasa_moe.router_bias"


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuned:
    """Hold what a rival method made of the model.

    Attributes:
        tensors: Parameter name -> whole tensor, for every parameter that may differ from the base model. A
            method that acts at inference leaves its router bias, (L,E) fp32, under `STEERING`: one file of
            tensors holds any method.
        log: As in `Alignment`.
    """

    tensors: dict[str, Tensor]
    log: tuple[LogLine, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """Hold what every method is given; the model must be left as it was.

    Attributes:
        model: The base model, in eval mode.
        tokenizer: Its tokenizer.
        moe: Its map.
        pairs: Jailbreaks that worked, each with its refused plain request.
        retain: Harmless conversations with the model's own answers.
        config: Settings; `align` holds what the methods share (batches, weights of the parts).
        routing: RASA's consistent routers on the same rows, for a method that takes them; None if there
            are none yet.
        checkpoint_path: Written after every epoch; a later call goes on from there.
        readings: What trainings before it read on the same rows.
        progress: Called after every step.
    """

    model: Any
    tokenizer: Any
    moe: MoeMap
    pairs: Sequence[Pair]
    retain: Sequence[RetainRow]
    config: Config
    routing: ExpertPatch | None = None
    checkpoint_path: Path | None = None
    readings: BaseReadings = field(default_factory=BaseReadings)
    progress: Progress = no_progress

    @property
    def part_weights(self) -> dict[str, float]:
        """The weight of each part of a batch in supervised training."""
        return part_weights(self.config.align)

    def rate(self, key: str) -> float:
        """Return a learning rate, named as in `--set`; the one for the model's width if none is given."""
        return learning_rate(key, setting(self.config, key), width=self.moe.width)

    def batches(self) -> list[TrainingBatch]:
        """Return the batches of supervised training, the same for every method."""
        return batches_for(
            self.tokenizer,
            pairs=self.pairs,
            retain=self.retain,
            config=self.config.align,
            seed=self.config.seed,
            device=self.model.device,
            readings=self.readings,
        )

    def identity(self, method: str) -> str:
        """Return a hash of everything that decides a training, for checkpoints."""
        pairs = [vars(pair) for pair in self.pairs]
        return sha256_json([method, self.config.model_dump(), pairs, [vars(row) for row in self.retain]])


@dataclass(frozen=True)
class Rival:
    """Name a method and hold its training.

    Attributes:
        name: As in `compare`.
        description: What it changes, in a few words.
        train: The method itself.
        trains_in_place: Whether it trains the model's own weights, which must be fp32 then.
        extra: The package that it needs beside ours, which has an extra of that name; empty for none.
    """

    name: str
    description: str
    train: Callable[[Job], Tuned]
    trains_in_place: bool = False
    extra: str = ""

    def require_extra(self) -> None:
        """Find out that a package is missing before hours of work depend on it.

        Raises:
            ConfigError: It is not installed.
        """
        if self.extra and find_spec(self.extra) is None:
            raise ConfigError(
                f"The method '{self.name}' needs {self.extra}; install it with: "
                f"pip install 'rasa-moe[{self.extra}]', or leave it out of compare."
            )

    def __call__(
        self,
        model: Any,
        tokenizer: Any,
        moe: MoeMap,
        *,
        pairs: Sequence[Pair],
        retain: Sequence[RetainRow],
        config: Config,
        routing: ExpertPatch | None = None,
        checkpoint_path: Path | None = None,
        readings: BaseReadings | None = None,
        progress: Progress = no_progress,
    ) -> Tuned:
        """Train the rival; the model is left as it was, bit for bit.

        Raises:
            TrainingError: The loss is no longer a number.
            ModelError: The weights are in a type that this method cannot train.
        """
        return self.train(
            Job(
                model=model,
                tokenizer=tokenizer,
                moe=moe,
                pairs=pairs,
                retain=retain,
                config=config,
                routing=routing,
                checkpoint_path=checkpoint_path,
                readings=readings or BaseReadings(),
                progress=progress,
            )
        )


@contextmanager
def in_use(moe: MoeMap, tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Let the model answer as a method made it: its weights put in, its routers steered.

    Args:
        moe: The base model's map.
        tensors: `Tuned.tensors`, or the same read back from a file.

    Yields:
        Names of the parameters that were replaced; none for a method that acts at inference only.

    Raises:
        ModelError: The tensors are of another model.
    """
    weights = {name: tensor for name, tensor in tensors.items() if name != STEERING}
    with ExitStack() as stack:
        stack.enter_context(swapped(moe.model, pieces_of(weights)))
        if STEERING in tensors:
            stack.enter_context(steer(moe, tensors[STEERING]))
        yield list(weights)


def whole_tensors(model: Any, patch: ExpertPatch) -> dict[str, Tensor]:
    """Return the parameters that a patch touches as whole tensors, on the CPU; the model must be its base."""
    patch.apply(model)
    try:
        return copies(model, list(patch.after))
    finally:
        patch.revert(model)


def require_float32(model: Any, *, method: str) -> None:
    """Refuse to train weights in place in a type that swallows small steps.

    Raises:
        ModelError: Some weight is not in fp32.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ModelError(
                f"The method '{method}' trains the weights in place, but {name} is in {dtype}, which loses "
                "small steps; set dtype: float32, or leave the method out of compare."
            )

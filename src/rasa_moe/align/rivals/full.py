"""Full-parameter fine-tuning on the same pairs, batches and losses: the paper says it takes the shortcut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rasa_moe.align.batches import TrainingBatch, epoch_order, make_batches
from rasa_moe.align.checkpoint import Checkpoint
from rasa_moe.align.loop import TrainingLog, relative_change, run_epoch
from rasa_moe.align.losses import supervised_losses, weighted_sum
from rasa_moe.align.repair import forward, part_weights
from rasa_moe.align.rivals.base import Tuned
from rasa_moe.collect.stage import RetainRow
from rasa_moe.config import Config
from rasa_moe.data.rows import Pair
from rasa_moe.files import sha256_json
from rasa_moe.moe import MoeMap, swapped
from rasa_moe.progress import Progress, no_progress

METHOD = "full"


class _AllWeights:
    """Every parameter of a model, as something that is trained."""

    def __init__(self, model: Any) -> None:
        self._parameters = dict(model.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(state[name])


def train_full(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    pairs: Sequence[Pair],
    retain: Sequence[RetainRow],
    config: Config,
    checkpoint_path: Path | None = None,
    progress: Progress = no_progress,
) -> Tuned:
    """Fine-tune every weight; the model is left as it was.

    Raises:
        TrainingError: The loss is no longer a number.
    """
    batches = make_batches(
        tokenizer,
        pairs=pairs,
        retain=retain,
        batch_size=config.align.batch_size,
        seed=config.seed,
        device=model.device,
    )
    weights = _AllWeights(model)
    base = weights.state_dict()
    log = TrainingLog(METHOD)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.full.lr, weight_decay=config.align.weight_decay
    )
    done = 0
    checkpoint = None
    with swapped(model, base):  # puts the base weights back whatever happens
        if checkpoint_path is not None:
            identity = sha256_json([config.model_dump(), [vars(pair) for pair in pairs]])
            checkpoint = Checkpoint(
                checkpoint_path, identity=identity, trained={METHOD: weights}, optimizers={METHOD: optimizer}
            )
            done, log.lines = checkpoint.load()
        for epoch in range(done, config.full.epochs):
            steps = iter(range(epoch * len(batches) + 1, (epoch + 1) * len(batches) + 1))
            before = weights.state_dict()
            run_epoch(
                batches,
                epoch_order(len(batches), seed=config.seed, epoch=epoch),
                _loss_of(model, config),
                optimizer=optimizer,
                max_grad_norm=config.align.max_grad_norm,
                log=log,
                phase=METHOD,
                round_number=epoch,
                on_step=lambda steps=steps: progress("full", next(steps), config.full.epochs * len(batches)),  # type: ignore[misc]
            )
            log.moved(
                phase=METHOD,
                round_number=epoch,
                relative_change={"all weights": relative_change(before, weights.state_dict())},
            )
            if checkpoint is not None:
                checkpoint.save(phases_done=epoch + 1, log=log.lines)
        tuned = weights.state_dict()
    model.requires_grad_(False)
    return Tuned(tensors=tuned, log=tuple(log.lines))


def _loss_of(model: Any, config: Config) -> Any:
    weights = part_weights(config.align)

    def compute(batch: TrainingBatch, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        losses = supervised_losses(forward(model, batch).logits, batch)
        return weighted_sum(losses, weights), {f"loss_{name}": loss for name, loss in losses.items()}

    return compute

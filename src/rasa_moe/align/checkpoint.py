"""Where a training stands, as one file: weights, optimiser state and log; a resumed run ends the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rasa_moe.align.trainable import Stateful
from rasa_moe.distributed import current
from rasa_moe.errors import RunError
from rasa_moe.files import write_bytes
from rasa_moe.moe.sharding import stored_like, whole


class Checkpoint:
    """Save and load the position of one training.

    Args:
        path: The file; absent until the first save.
        identity: Names the training (settings and data); a file of another training is refused.
        trained: Name -> what is trained.
        optimizers: Name -> its optimiser, with the same names.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: str,
        trained: Mapping[str, Stateful],
        optimizers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        self._path = path
        self._identity = identity
        self._trained = trained
        self._optimizers = optimizers

    def save(self, *, phases_done: int, log: list[dict[str, Any]]) -> None:
        """Write everything in one atomic file; of several processes the first writes."""
        is_first = current().is_first
        tensors: dict[str, Tensor] = {}
        for key, value in self._whole_tensors():
            if is_first:  # the others only take part in making tensors whole
                tensors[key] = value.cpu().contiguous()
        if not is_first:
            return
        metadata = {"identity": self._identity, "phases_done": str(phases_done), "log": json.dumps(log)}
        write_bytes(self._path, save(tensors, metadata))

    def _whole_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, owner in self._trained.items():
            for key, value in owner.state_dict().items():
                yield f"{name}|{key}", value
        for name, optimizer in self._optimizers.items():
            for number, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    yield f"{name}-optimizer|{number}|{key}", whole(torch.as_tensor(value))

    def load(self) -> tuple[int, list[dict[str, Any]]]:
        """Restore the saved state, if there is one, and return (phases done, log).

        Raises:
            RunError: The file is of another training or cannot be read.
        """
        if not self._path.exists():
            return 0, []
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        except SafetensorError as error:
            raise RunError(f"{self._path} cannot be read ({error}); delete it to train anew.") from error
        if metadata.get("identity") != self._identity:
            raise RunError(
                f"{self._path} belongs to a training with other settings or data; delete it to train anew."
            )
        for name, owner in self._trained.items():
            owner.load_state_dict(_under(tensors, name))
        for name, optimizer in self._optimizers.items():
            _restore_optimizer(optimizer, _under(tensors, f"{name}-optimizer"))
        return int(metadata["phases_done"]), json.loads(metadata["log"])


def _under(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}|"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, field = key.split("|")
        state.setdefault(int(number), {})[field] = tensor
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, fields in state.items():
        for field, tensor in fields.items():
            if tensor.shape == parameters[place].shape:  # not the number of steps
                fields[field] = stored_like(tensor, parameters[place])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

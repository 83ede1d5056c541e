"""Train the routers of a model and nothing else, in fp32 whatever the model's own dtype.

With weights in bf16 and a learning rate near 1e-6 almost every step rounds to nothing, so the trained values
are fp32 masters; the router computes with their cast to the model's dtype, the same values that are written
back at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rasa_moe.moe.layers import MoeMap
from rasa_moe.moe.sharding import whole, write_rows
from rasa_moe.moe.slices import freeze, load_parameters, relative_change, unfreeze


class TrainableRouters:
    """Hold every router weight as a trainable fp32 master; iterating gives the masters.

    While open, no parameter of the model wants a gradient, and routers compute with the masters. On exit the
    masters are written into the model in its dtype. The same object may be opened again and then goes on from
    its masters. Keep it open through `backward()`.
    """

    def __init__(self, moe: MoeMap) -> None:
        self._moe = moe
        # One entry a tensor: (name, module that owns it, attribute there, router it belongs to).
        self._owners: list[tuple[str, nn.Module, str]] = []
        self._masters: dict[str, nn.Parameter] = {}
        for layer in moe.layers:
            for prefix, module in layer.router.named_modules(prefix=layer.router_name):
                for attribute, parameter in module.named_parameters(recurse=False):
                    name = f"{prefix}.{attribute}"
                    self._owners.append((name, module, attribute))
                    self._masters[name] = nn.Parameter(whole(parameter).float().clone())
        self._handles: list[RemovableHandle] = []
        self._required_grad: dict[str, bool] = {}

    def __enter__(self) -> Self:
        self._required_grad = freeze(self._moe.model)
        for layer in self._moe.layers:
            owned = [entry for entry in self._owners if entry[0].startswith(f"{layer.router_name}.")]
            self._handles.append(layer.router.register_forward_pre_hook(self._shadow(owned), prepend=True))
            self._handles.append(layer.router.register_forward_hook(self._unshadow(owned), always_call=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.merge()
        unfreeze(self._moe.model, self._required_grad)

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self._masters.values())

    def __len__(self) -> int:
        return len(self._masters)

    def _shadow(self, owned: list[tuple[str, nn.Module, str]]) -> Any:
        # An entry in the instance's own dictionary is found before the registered parameter, so the router
        # computes with the master while names, state dict and optimizers of the model see nothing new.
        def hook(router: nn.Module, arguments: Any) -> None:
            for name, module, attribute in owned:
                base = module._parameters[attribute]
                assert base is not None
                vars(module)[attribute] = self._masters[name].to(base.dtype)

        return hook

    def _unshadow(self, owned: list[tuple[str, nn.Module, str]]) -> Any:
        def hook(router: nn.Module, arguments: Any, output: Any) -> None:
            for _, module, attribute in owned:
                vars(module).pop(attribute, None)

        return hook

    def parameters(self) -> list[nn.Parameter]:
        """Return the fp32 masters, in order of depth."""
        return list(self._masters.values())

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return (name in the model, fp32 master) pairs."""
        return list(self._masters.items())

    @property
    def num_parameters(self) -> int:
        """Number of trainable values."""
        return sum(master.numel() for master in self)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the masters as plain fp32 tensors."""
        return {name: master.detach().clone() for name, master in self._masters.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over masters saved by `state_dict`.

        Raises:
            ModelError: The state belongs to another model.
        """
        load_parameters(self._masters, state, what="routers")

    def change_since(self, state: dict[str, Tensor]) -> float:
        """Return how far the masters moved since `state_dict`, relative to their norm then."""
        return relative_change((state[name], master.detach()) for name, master in self._masters.items())

    @torch.no_grad()
    def merge(self) -> None:
        """Write the masters into the model, in its dtype."""
        for name, module, attribute in self._owners:
            base = module._parameters[attribute]
            assert base is not None
            write_rows(base, None, self._masters[name])


def trainable_routers(moe: MoeMap) -> TrainableRouters:
    """Return a context manager within which only routers learn; iterating it gives fp32 parameters."""
    return TrainableRouters(moe)

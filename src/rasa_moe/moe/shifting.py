"""Keep, shift and take over the hidden states with which the last MoE layer is entered.

There the answer is all but decided: behind it come that layer's own attention and experts, and the scores.

Shape letters: B sequences, S positions, N positions that are shifted, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rasa_moe.moe.calls import CallWatcher, Handle
from rasa_moe.moe.layers import MoeMap

_Change = Callable[[Tensor], Tensor]


@contextmanager
def kept_entry(moe: MoeMap, model: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the hidden states with which the last MoE layer is entered.

    Yields:
        A list to which each call appends (B,S,D), with its graph.
    """
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden

    with _changed(moe, model, keep):
        yield seen


@contextmanager
def shifted(moe: MoeMap, model: nn.Module, positions: Tensor, shifts: Tensor) -> Iterator[None]:
    """Add vectors to the hidden states at some positions, also where checkpointing runs the layer again.

    Args:
        moe: The model's map.
        model: The model that is called.
        positions: (B,S) bool.
        shifts: (N,D), in the order of the positions.
    """

    def add(hidden: Tensor) -> Tensor:
        at = positions.to(hidden.device).nonzero(as_tuple=True)
        return hidden.index_put(at, shifts.to(hidden), accumulate=True)

    with _changed(moe, model, add):
        yield


@contextmanager
def entered_with(moe: MoeMap, model: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Begin calls at the last MoE layer, with what an earlier call on the same tokens has computed before it.

    Args:
        moe: The model's map.
        model: The model that is called.
        hidden: (B,S,D), of `kept_entry`; gradient reaches the earlier layers through it.
    """

    def skip(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    layers, _, place = moe.layers[-1].decoder_name.rpartition(".")
    earlier = list(model.get_submodule(layers).children())[: int(place)]
    own = [layer.__dict__.get("forward") for layer in earlier]
    for layer in earlier:
        layer.forward = skip
    try:
        with _changed(moe, model, lambda entered: hidden):
            yield
    finally:
        for layer, forward in zip(earlier, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


@contextmanager
def _changed(moe: MoeMap, model: nn.Module, change: _Change) -> Iterator[None]:
    layer = model.get_submodule(moe.layers[-1].decoder_name)

    def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # Decoder layers take the hidden states first; some models name them.
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def install() -> list[Handle]:
        return [layer.register_forward_pre_hook(enter, with_kwargs=True)]

    with CallWatcher(model, install).watching():
        yield

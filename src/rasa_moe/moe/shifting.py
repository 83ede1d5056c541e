"""Keep, shift and take over the hidden states with which the last MoE layer is entered.

There the answer is all but decided: behind it come that layer's own attention and experts, and the scores.

Shape letters: B sequences, S positions, N positions that are shifted, D width (of all streams together, where
a model keeps several).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rasa_moe.moe.calls import CallWatcher, Handle
from rasa_moe.moe.layers import MoeMap

_Change = Callable[[Tensor], Tensor]
_PROBE_TOKENS, _PROBE_TOLERANCE = 8, 1e-2
# What a layer may raise that misses something which the layers before it should have handed on.
_OF_LAYERS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextmanager
def kept_entry(moe: MoeMap, model: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the hidden states with which the last MoE layer is entered.

    Yields:
        A list to which each call appends (B,S,D), or (B,S,streams,width), with its graph.
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
        return hidden.index_put(at, shifts.to(hidden).view(-1, *hidden.shape[2:]), accumulate=True)

    with _changed(moe, model, add):
        yield


@contextmanager
def entered_with(moe: MoeMap, model: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Begin calls at the last MoE layer, with what an earlier call on the same tokens has computed before it.

    Only where `can_be_entered`.

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


@torch.no_grad()
def can_be_entered(moe: MoeMap, model: nn.Module) -> bool:
    """Tell whether a call with `entered_with` gives what the whole call gives.

    Not so where decoder layers hand on more than the hidden states: states of blocks, choices of tokens, keys
    and values that later layers share.
    """
    call: Callable[..., Any] = model
    ids = torch.arange(_PROBE_TOKENS, device=next(model.parameters()).device)[None]
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with kept_entry(moe, model) as entries:
        whole = call(**tokens).logits.float()
    try:
        with entered_with(moe, model, entries[0]):
            entered = call(**tokens).logits.float()
    except _OF_LAYERS:
        return False
    return bool((entered - whole).norm() <= _PROBE_TOLERANCE * whole.norm())


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

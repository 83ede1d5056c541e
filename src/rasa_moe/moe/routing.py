"""Record, replay and watch the routing of a model; all are context managers around ordinary calls of it.

Everything is keyed by `MoeLayer.name` and works with padding, with a KV cache under `generate()`, and with
non-reentrant gradient checkpointing.

Shape letters: B sequences, S positions, T real tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rasa_moe.errors import ModelError
from rasa_moe.moe.calls import CallWatcher, Handle, narrowed
from rasa_moe.moe.interception import forced_choice
from rasa_moe.moe.layers import MoeLayer, MoeMap
from rasa_moe.moe.scoring import routing_distribution
from rasa_moe.moe.traces import ActivationCounts, RoutedCall, RouterWatch, RoutingTrace


@contextmanager
def record(
    moe: MoeMap, model: nn.Module, *, probabilities: bool = False, span: Tensor | None = None
) -> Iterator[RoutingTrace]:
    """Record the ids and weights that reach the experts in every call of a model.

    Args:
        moe: The model's map.
        model: The module that is called.
        probabilities: Whether to keep the full routing distribution as well.
        span: (B,S) bool narrowing the real tokens of a call.

    Yields:
        The trace, filled while the context is open.
    """
    check_same_model(moe, model)
    trace = RoutingTrace(span=span)

    def routed_call() -> RoutedCall:
        if watcher.call.index == len(trace.calls):
            trace.calls.append(RoutedCall(mask=narrowed(watcher.call.mask, trace.span)))
        return trace.calls[watcher.call.index]

    def keep_choice(layer: MoeLayer, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not watcher.is_rerun:
            _, ids, weights = experts_inputs(layer, args, kwargs)
            routed_call().ids[layer.name] = ids.detach()
            routed_call().weights[layer.name] = weights.detach()

    def keep_distribution(layer: MoeLayer, module: nn.Module, args: Any, output: Any) -> None:
        if not watcher.is_rerun:
            distribution = routing_distribution(output[0].detach(), layer.scoring)
            routed_call().probabilities[layer.name] = distribution

    def install() -> list[Handle]:
        handles = on_experts(moe, keep_choice)
        return handles + on_routers(moe, keep_distribution) if probabilities else handles

    watcher = CallWatcher(model, install)
    with watcher.watching():
        yield trace


@contextmanager
def count_activations(
    moe: MoeMap, model: nn.Module, *, span: Tensor | None = None
) -> Iterator[ActivationCounts]:
    """Count, per sequence, how many tokens activate each expert, without keeping the routing itself.

    Args:
        moe: The model's map.
        model: The module that is called.
        span: (B,S) bool narrowing the real tokens of a call.

    Yields:
        The counts, filled while the context is open.
    """
    check_same_model(moe, model)
    counts = ActivationCounts(span=span)
    num_experts = moe.num_experts
    rows = {layer.name: row for row, layer in enumerate(moe.layers)}
    masks: dict[int, Tensor] = {}

    def count(layer: MoeLayer, module: nn.Module, args: Any, kwargs: Any) -> None:
        if watcher.is_rerun:
            return
        call = watcher.call
        if call.index not in masks:
            masks.clear()
            masks[call.index] = narrowed(call.mask, counts.span)
            shape = (call.mask.shape[0], moe.num_layers, num_experts)
            counts._counts.append(torch.zeros(shape, dtype=torch.int64, device=call.mask.device))
            counts._tokens.append(masks[call.index].sum(dim=1))
        mask_BS = masks[call.index]
        ids_BSK = experts_inputs(layer, args, kwargs)[1].view(*mask_BS.shape, -1).to(mask_BS.device)
        hits_BSK = mask_BS[:, :, None].expand_as(ids_BSK).long()
        row = counts._counts[-1][:, rows[layer.name]]
        row.scatter_add_(1, ids_BSK.flatten(1), hits_BSK.flatten(1))

    watcher = CallWatcher(model, lambda: on_experts(moe, count))
    with watcher.watching():
        yield counts


@contextmanager
def watch_routers(moe: MoeMap, model: nn.Module) -> Iterator[RouterWatch]:
    """Keep the router logits of the latest call with their graph, for losses on the routing distribution."""
    check_same_model(moe, model)
    watch = RouterWatch(moe)

    def keep(layer: MoeLayer, module: nn.Module, args: Any, output: Any) -> None:
        if watcher.is_rerun:
            return
        if watch._mask is not watcher.call.mask:
            watch._mask = watcher.call.mask
            watch._logits = {}
        watch._logits[layer.name] = output[0]

    watcher = CallWatcher(model, lambda: on_routers(moe, keep))
    with watcher.watching():
        yield watch


@contextmanager
def replay(
    moe: MoeMap, trace: RoutingTrace, *, weights: Literal["recorded", "live"] = "recorded"
) -> Iterator[None]:
    """Force recorded routing on a model, call by call in the recorded order.

    A layer that gradient checkpointing runs again gets the routing of the call it belongs to, even when
    backward runs after this context has closed.

    Args:
        moe: The map of the model that is to follow the trace.
        trace: Recorded on the same padded batches, by this or another model of the same shape.
        weights: "recorded" forces ids and weights; "live" forces ids, and the router computes the weights
            itself, so that gradient reaches it.

    Raises:
        ModelError: A call has another shape than the recorded one, or there are more calls than were
            recorded.
    """

    def recorded(layer: MoeLayer, num_tokens: int) -> tuple[Tensor, Tensor]:
        index = watcher.call.index
        if index >= len(trace.calls):
            raise ModelError(
                f"The model was called more often than the trace has calls ({len(trace.calls)}); "
                "record the same calls, or open the replay anew for each batch."
            )
        call = trace.calls[index]
        if layer.name not in call.ids or call.ids[layer.name].shape[0] != num_tokens:
            known = tuple(call.mask.shape)
            raise ModelError(
                f"Call {index} of the replay has {num_tokens} positions in '{layer.name}' but was recorded "
                f"as {known}; replay on exactly the recorded batch."
            )
        return _usable(call.ids[layer.name]), _usable(call.weights[layer.name])

    def force(
        layer: MoeLayer, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        hidden, ids, live_weights = experts_inputs(layer, args, kwargs)
        new_ids, new_weights = recorded(layer, ids.shape[0])
        return (hidden, new_ids.to(ids.device), new_weights.to(live_weights)), {}

    def recorded_ids(layer: MoeLayer, num_tokens: int) -> Tensor:
        return recorded(layer, num_tokens)[0]

    def install() -> list[Handle]:
        if weights == "recorded":
            return on_experts(moe, force, first=True)
        return [forced_choice(layer, partial(recorded_ids, layer)) for layer in moe.layers]

    watcher = CallWatcher(moe.model, install)
    with watcher.watching():
        yield


def check_same_model(moe: MoeMap, model: nn.Module) -> None:
    """Raise unless a map describes this very model; hooks on another one would see nothing and say nothing.

    Raises:
        ModelError: The map was made from another model.
    """
    modules = set(model.modules())
    if not all(layer.experts in modules and layer.router in modules for layer in moe.layers):
        raise ModelError("The map was made from another model object; discover the one that is called.")


def _usable(tensor: Tensor) -> Tensor:
    """Return a tensor that backward may keep, also when it was recorded in inference mode."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def experts_inputs(
    layer: MoeLayer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (hidden (T,D), ids (T,K), weights (T,K)) from the arguments of a call of fused experts."""
    inputs = (*args, *kwargs.values())
    if len(inputs) != 3 or inputs[1].is_floating_point() or inputs[1].shape != inputs[2].shape:
        raise ModelError(
            f"'{layer.experts_name}' is not called as (hidden, ids, weights); "
            "this family needs code of its own."
        )
    return inputs


def on_experts(moe: MoeMap, hook: Callable[..., Any], *, first: bool = False) -> list[Handle]:
    """Register `hook(layer, module, args, kwargs)` before all experts; `first` puts it before other hooks."""
    return [
        layer.experts.register_forward_pre_hook(partial(hook, layer), with_kwargs=True, prepend=first)
        for layer in moe.layers
    ]


def on_routers(moe: MoeMap, hook: Callable[..., Any]) -> list[Handle]:
    """Register `hook(layer, module, args, output)` after every router."""
    return [layer.router.register_forward_hook(partial(hook, layer)) for layer in moe.layers]

"""Change what a router can choose without knowing its formula, by stepping into its own top-k.

Families differ in what they do around `topk` (softmax before or after, groups, selection bias, scaling); all
of that stays the router's own code.

Shape letters: T tokens, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rasa_moe.errors import ModelError
from rasa_moe.moe.layers import ExpertId, MoeLayer, MoeMap

_TOPK = frozenset({torch.topk, torch.Tensor.topk})
_LINEAR = frozenset({nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__})
# Below every score a router computes, yet small enough that sums of two such scores stay ordered in fp32.
_LAST_CHOICE = -1e4


class WrappedForward:
    """Stand between a module and its `forward`; `remove` takes it away again."""

    def __init__(
        self, module: nn.Module, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self._module = module
        self._before = vars(module).get("forward")
        vars(module)["forward"] = wrapper(module.forward)

    def remove(self) -> None:
        """Give the module its former `forward` back."""
        if self._before is None:
            del vars(self._module)["forward"]
        else:
            vars(self._module)["forward"] = self._before


class _ForceTopK(TorchFunctionMode):
    """Answer a router's top-k over all experts with given ids, and with the values that stand there."""

    def __init__(self, layer: MoeLayer, ids_TK: Tensor) -> None:
        super().__init__()
        self._layer = layer
        self._ids_TK = ids_TK
        self.num_answered = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _TOPK or args[0].shape[-1] != self._layer.num_experts:
            return result
        if result.indices.shape != self._ids_TK.shape:
            return result
        self.num_answered += 1
        ids_TK = self._ids_TK.to(args[0].device)
        return torch.return_types.topk((args[0].gather(-1, ids_TK), ids_TK))


class _Silence(TorchFunctionMode):
    """Take experts out of a router: their logits are minus infinity and no top-k can pick them."""

    def __init__(self, layer: MoeLayer, is_silent_E: Tensor) -> None:
        super().__init__()
        self._layer = layer
        self._is_silent_E = is_silent_E
        self.num_masked = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        num_experts = self._layer.num_experts
        if func in _TOPK:
            scores = args[0]
            if scores.shape[-1] == num_experts:
                args = (scores.masked_fill(self._is_silent_E, float("-inf")), *args[1:])
            elif scores.dim() == 3 and scores.shape[1] * scores.shape[2] == num_experts:
                # Best experts of each group, whose sum ranks the groups: silent ones count only if nothing is
                # left.
                groups = self._is_silent_E.view(scores.shape[1:])
                args = (scores.masked_fill(groups, _LAST_CHOICE), *args[1:])
        result = func(*args, **(kwargs or {}))
        if func in _LINEAR and result.shape[-1] == num_experts:
            self.num_masked += 1
            result = result.masked_fill(self._is_silent_E, float("-inf"))
        return result


def forced_choice(layer: MoeLayer, ids_of: Callable[[int], Tensor]) -> WrappedForward:
    """Make a router choose given experts and compute their weights itself.

    Args:
        layer: The layer whose router is bound.
        ids_of: Number of tokens in a call -> (T,K) int64 ids for them.

    Returns:
        The handle that releases the router. A router without exactly one top-k over all experts raises
        `ModelError` when it is called.
    """

    def wrapper(forward: Callable[..., Any]) -> Callable[..., Any]:
        def forced(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            with _ForceTopK(layer, ids_of(hidden.numel() // hidden.shape[-1])) as mode:
                output = forward(hidden, *args, **kwargs)
            if mode.num_answered != 1:
                raise ModelError(
                    f"Router '{layer.router_name}' does not choose by one top-k over its experts, so its "
                    "choice cannot be forced with live weights; use recorded weights."
                )
            return output

        return forced

    return WrappedForward(layer.router, wrapper)


@contextmanager
def silence(moe: MoeMap, experts: Sequence[ExpertId]) -> Iterator[None]:
    """Forbid experts: routers behave as if these did not exist.

    Softmax routers share the whole probability among the others; sigmoid routers score the others as before.
    Keep the context open through `backward()` if the model uses gradient checkpointing.

    Args:
        moe: The model's map.
        experts: The experts to forbid; none is allowed.

    Raises:
        ModelError: Fewer than top-k experts of a layer (or of the groups its router picks) would remain.
    """
    handles: list[WrappedForward] = []
    try:
        for row, chosen in moe.by_layer(list(experts)).items():
            layer = moe.layers[row]
            remaining = layer.num_experts - len(chosen)
            if remaining < layer.top_k:
                raise ModelError(
                    f"Silencing {len(chosen)} of {layer.num_experts} experts leaves {remaining} in layer "
                    f"{layer.index}, but every token needs {layer.top_k}; silence fewer."
                )
            handles.append(WrappedForward(layer.router, _silencer(layer, chosen)))
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()


def _silencer(layer: MoeLayer, chosen: list[int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    is_silent_E = torch.zeros(layer.num_experts, dtype=torch.bool)
    is_silent_E[chosen] = True
    is_silent_E = is_silent_E.to(next(layer.router.parameters()).device)

    def wrapper(forward: Callable[..., Any]) -> Callable[..., Any]:
        def silenced(*args: Any, **kwargs: Any) -> Any:
            with _Silence(layer, is_silent_E) as mode:
                output = forward(*args, **kwargs)
            if mode.num_masked != 1:
                raise ModelError(
                    f"Router '{layer.router_name}' does not compute its logits by one linear map, so its "
                    "experts cannot be silenced; this family needs code of its own."
                )
            if bool(is_silent_E[output[2]].any()):
                raise ModelError(
                    f"The expert groups that router '{layer.router_name}' picks hold fewer than "
                    f"{layer.top_k} experts that are not silent; silence fewer."
                )
            return output

        return silenced

    return wrapper

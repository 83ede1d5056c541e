"""Steer routers at inference: add a bias to their logits for a while, without touching a weight.

Shape letters: T tokens, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from rasa_moe.errors import ModelError
from rasa_moe.moe.interception import _LINEAR, WrappedForward
from rasa_moe.moe.layers import MoeLayer, MoeMap


class _AddBias(TorchFunctionMode):
    """Add a bias to what a router's linear map gives."""

    def __init__(self, bias_E: Tensor) -> None:
        super().__init__()
        self._bias_E = bias_E
        self.num_biased = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _LINEAR and result.shape[-1] == self._bias_E.shape[0]:
            self.num_biased += 1
            return result + self._bias_E.to(result)
        return result


@contextmanager
def steer(moe: MoeMap, bias: Tensor) -> Iterator[None]:
    """Promote and suppress experts: every router computes its logits plus a bias, then chooses as always.

    A layer whose biases are all 0 is left alone, so steering by nothing changes no bit.

    Args:
        moe: The model's map.
        bias: (L,E) floating, in units of the router's logits; positive promotes.

    Raises:
        ModelError: The bias has another shape than the model's experts, or a router does not compute its
            logits by one linear map.
    """
    expected = (moe.num_layers, moe.num_experts)
    if tuple(bias.shape) != expected:
        raise ModelError(
            f"The steering bias has shape {tuple(bias.shape)} but the model has {expected} (layers, "
            "experts); it was made for another model."
        )
    handles: list[WrappedForward] = []
    try:
        for layer, bias_E in zip(moe.layers, bias, strict=True):
            if bool(bias_E.any()):
                handles.append(WrappedForward(layer.router, _biased(layer, bias_E)))
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()


def _biased(layer: MoeLayer, bias_E: Tensor) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    bias_E = bias_E.to(next(layer.router.parameters()).device)

    def wrapper(forward: Callable[..., Any]) -> Callable[..., Any]:
        def biased(*args: Any, **kwargs: Any) -> Any:
            with _AddBias(bias_E) as mode:
                output = forward(*args, **kwargs)
            if mode.num_biased != 1:
                raise ModelError(
                    f"Router '{layer.router_name}' does not compute its logits by one linear map, so it "
                    "cannot be steered; this family needs code of its own."
                )
            return output

        return biased

    return wrapper

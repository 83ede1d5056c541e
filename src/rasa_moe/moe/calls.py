"""Follow the forward calls of a model: which call is running, and which of its positions are real tokens.

Hooks inside a model see flattened tokens only. They need to know the call they belong to, also when gradient
checkpointing runs a layer again during backward, long after the call has ended.

Shape letters: B sequences, S positions of one call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rasa_moe.errors import ModelError


class Handle(Protocol):
    """What undoes a change to a module."""

    def remove(self) -> None:
        """Undo it."""


@dataclass(frozen=True, eq=False)
class Call:
    """One forward call.

    Attributes:
        index: 0 for the first call since the watcher was opened.
        mask: (B,S) bool, true where a position of this call holds a real token.
    """

    index: int
    mask: Tensor


class CallWatcher:
    """Know the running call of a model, including layers that checkpointing runs again.

    Args:
        model: The model whose `__call__` is watched.
        install: Installs the hooks that ask for the running call; used again for a layer that is rerun after
            closing, so that what was pinned in the forward is pinned in the backward, too.
    """

    def __init__(self, model: nn.Module, install: Callable[[], list[Handle]]) -> None:
        self._model = model
        self._install = install
        self._is_open = False
        self._num_calls = 0
        self._call: Call | None = None
        self._is_rerun = False
        self._original_checkpoints: dict[nn.Module, Any] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the hooks installed for the duration of a with block."""
        handles = self._install()
        handles.append(self._model.register_forward_pre_hook(self._start, with_kwargs=True))
        # Last opened is first to end, so that nested watchers undo their wrapping in the reverse order.
        handles.append(self._model.register_forward_hook(self._end, prepend=True, always_call=True))
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False
            for handle in handles:
                handle.remove()

    @property
    def is_rerun(self) -> bool:
        """Whether the code that asks runs again for the sake of backward: nothing must be counted twice."""
        return self._is_rerun

    @property
    def call(self) -> Call:
        """The call that the code that asks belongs to.

        Raises:
            ModelError: No call is running; the model was entered by another door.
        """
        if self._call is None:
            raise ModelError(
                "A MoE layer ran outside a call of the watched model; call the model itself, and enable "
                "gradient checkpointing through transformers."
            )
        return self._call

    def _start(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self._call = Call(index=self._num_calls, mask=real_tokens(model, args, kwargs))
        self._num_calls += 1
        for module in model.modules():
            if (
                isinstance(module, GradientCheckpointingLayer)
                and module.gradient_checkpointing
                and module.training
            ):
                original = module._gradient_checkpointing_func
                self._original_checkpoints[module] = original
                module._gradient_checkpointing_func = self._bound_checkpoint(original, self._call)

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        for module, original in self._original_checkpoints.items():
            module._gradient_checkpointing_func = original
        self._original_checkpoints.clear()
        self._call = None

    def _bound_checkpoint(self, checkpoint: Callable[..., Any], call: Call) -> Callable[..., Any]:
        """Make a checkpoint function whose layer remembers its call, however late it is run again."""

        @wraps(checkpoint)
        def bound(function: Callable[..., Any], *args: Any) -> Any:
            def run(*inputs: Any) -> Any:
                with self._within(call):
                    return function(*inputs)

            return checkpoint(run, *args)

        return bound

    @contextmanager
    def _within(self, call: Call) -> Iterator[None]:
        if self._call is call and not self._is_rerun:
            yield
            return
        before = self._call, self._is_rerun
        handles = [] if self._is_open else self._install()
        self._call, self._is_rerun = call, True
        try:
            yield
        finally:
            self._call, self._is_rerun = before
            for handle in handles:
                handle.remove()


def real_tokens(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return which positions of a forward call hold real tokens.

    With a KV cache the attention mask also covers cached positions; the call's own are its last S columns.

    Returns:
        (B,S) bool.

    Raises:
        ModelError: The call has no input, or an attention mask that is not (B, cached + S).
    """
    arguments = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    arguments = {**arguments.pop("kwargs", {}), **arguments}
    inputs = arguments.get("input_ids")
    inputs = arguments.get("inputs_embeds") if inputs is None else inputs
    if not isinstance(inputs, Tensor):
        raise ModelError("The model was called without input_ids, so its tokens cannot be told from padding.")
    num_sequences, num_positions = inputs.shape[:2]
    mask = arguments.get("attention_mask")
    if mask is None:
        return torch.ones(num_sequences, num_positions, dtype=torch.bool, device=inputs.device)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < num_positions:
        raise ModelError(
            "Routing can be read with an attention mask of shape (sequences, positions) only; "
            "pass that one, with a dynamic cache."
        )
    return mask[:, -num_positions:].bool()


def narrowed(mask: Tensor, span: Tensor | None) -> Tensor:
    """Return the real tokens of a call that lie in a span.

    Args:
        mask: (B,S) bool.
        span: (B,S) bool, or None for all real tokens.

    Raises:
        ModelError: The span has another shape than the call.
    """
    if span is None:
        return mask
    if span.shape != mask.shape:
        raise ModelError(
            f"The span has shape {tuple(span.shape)} but the call has {tuple(mask.shape)}; "
            "give one span per call, of the call's own shape."
        )
    return mask & span.to(mask.device).bool()

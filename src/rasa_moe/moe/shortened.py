"""Leave out of a forward call what nobody reads: scores of positions that are not learned, and late layers.

Shape letters: B sequences, S positions, N positions that are read, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rasa_moe.moe.layers import MoeMap
from rasa_moe.moe.sharding import is_sharded


class _Enough(Exception):
    """Ends a forward call whose rest nobody reads."""


@contextmanager
def logits_at(model: Any, positions: Tensor, *, also: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Compute scores of the vocabulary at some positions only: `logits` of a call is (N,V), not (B,S,V).

    Scores cost more memory than everything else in a batch of a small model with a large vocabulary.

    Args:
        model: Causal language model.
        positions: (B,S) bool, in the order of the rows of `logits`.
        also: (M,D) final hidden states of an earlier call whose scores shall come last: `logits` is (N+M,V).
            The model treats them as it treats its own.

    Yields:
        A list to which each call appends its final hidden states at the positions, (N,D).
    """
    seen: list[Tensor] = []

    def narrow(head: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        seen.append(args[0][positions.to(args[0].device)])
        return seen[-1] if also is None else torch.cat([seen[-1], also.to(seen[-1])])

    handle = model.get_output_embeddings().register_forward_pre_hook(narrow)
    try:
        yield seen
    finally:
        handle.remove()


def call_for_routing(moe: MoeMap, model: Any, *, input_ids: Tensor, attention_mask: Tensor) -> Any:
    """Call a model as far as its last router, for those who watch routers.

    The last layer's experts and the scores of the vocabulary are left out. Sharded and checkpointed layers
    must end what they began, so with these only the scores are.

    Args:
        moe: The model's map.
        model: The model.
        input_ids: (B,S) int64.
        attention_mask: (B,S) int64.

    Returns:
        What the model returned, with `logits` (0,V); None where the call ended at the router.
    """

    def stop(experts: nn.Module, args: Any) -> None:
        raise _Enough

    handles = []
    if not _must_end(moe):
        # Last among the hooks, so that everybody else has seen the call.
        handles.append(moe.layers[-1].experts.register_forward_pre_hook(stop))
    try:
        with logits_at(model, attention_mask.new_zeros(attention_mask.shape).bool()):
            return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _Enough:
        return None
    finally:
        for handle in handles:
            handle.remove()


def _must_end(moe: MoeMap) -> bool:
    if any(is_sharded(parameter) for parameter in moe.model.parameters()):
        return True
    layers = (module for module in moe.model.modules() if isinstance(module, GradientCheckpointingLayer))
    return any(layer.gradient_checkpointing and layer.training for layer in layers)

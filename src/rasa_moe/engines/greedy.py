"""Greedy token ids for a padded batch: a shared beginning is read once, and finished rows leave.

A batch too large for memory is halved.

Shape letters: B sequences, S positions.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rasa_moe.data.chats import Batch
from rasa_moe.distributed import current
from rasa_moe.engines.plain import plain_decoding
from rasa_moe.errors import ModelError
from rasa_moe.moe import logits_at

Item = TypeVar("Item")
Result = TypeVar("Result")

# Finished rows leave after so many steps. A call of transformers' `generate` costs about one step.
_STEPS = 8
# A shared beginning of fewer tokens is read by every row: a call of its own would cost more.
SHARED_TOKENS = 32


def halving(work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
    """Do work on a batch; where the device's memory is too small for it, on one half after the other.

    Raises:
        ModelError: Memory is too small for a single item.
    """
    try:
        return work(items)
    except torch.OutOfMemoryError as error:
        # Processes that share weights call the model together, so one of them cannot call it twice.
        if len(items) == 1 or current().size > 1:
            raise ModelError(
                f"Memory is too small to answer {len(items)} conversation(s) at once; lower batch_tokens or "
                "max_new_tokens, or use a smaller dtype."
            ) from error
    # Only here is the failed batch free: the error held its frames.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(items) // 2
    return halving(work, items[:middle]) + halving(work, items[middle:])


@torch.inference_mode()
def greedy(
    model: Any, batch: Batch, *, max_new_tokens: int, stops: frozenset[int], pad_id: int
) -> list[list[int]]:
    """Continue every row with the most likely tokens until a stop token or the limit.

    Args:
        model: Causal language model in eval mode.
        batch: (B,S) prompts, padded on the left.
        max_new_tokens: The limit.
        stops: Token ids that end a row.
        pad_id: Fills rows that have ended.

    Returns:
        New token ids of each row; what follows a stop token is filling.
    """
    rows: list[list[int]] = [[] for _ in range(batch.input_ids.shape[0])]
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    alive = torch.arange(len(rows), device=ids.device)
    ends = torch.tensor(sorted(stops), dtype=torch.int64, device=ids.device)
    cache, done = _cache_that_parts(model), 0
    if cache is not None:
        ids, mask = _shared_read(model, cache, ids, mask, pad_id=pad_id)
    while done < max_new_tokens and len(alive):
        with plain_decoding(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=max_new_tokens - done if cache is None else min(_STEPS, max_new_tokens - done),
                do_sample=False,
                pad_token_id=pad_id,
                eos_token_id=sorted(stops) or None,
            )
        new = output[:, ids.shape[1] :]
        for row, tokens in zip(alive.tolist(), new.tolist(), strict=True):
            rows[row] += tokens
        done += new.shape[1]
        is_open = ~torch.isin(new, ends).any(dim=1)
        kept = is_open.nonzero().flatten()
        ids, alive = output[kept], alive[kept]
        mask = torch.cat([mask[kept], mask.new_ones(len(kept), new.shape[1])], dim=1)
        if cache is None:
            break
        if len(kept) < len(is_open) and len(kept):
            cache.batch_select_indices(kept)
    return rows


def _shared_read(
    model: Any, cache: Cache, ids: Tensor, mask: Tensor, *, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Let the model read once, into the cache, what all prompts begin with.

    Args:
        model: The model.
        cache: Empty; afterwards it holds the shared tokens for every row.
        ids: (B,S) int64, padded on the left.
        mask: (B,S) int64.
        pad_id: Fills the padding.

    Returns:
        The same prompts and their mask, (B,S') both: shared tokens first, then padding, then what is left.
    """
    shared = _num_shared(ids, mask)
    # A window over positions would count the padding in between.
    if (
        len(ids) == 1
        or shared < SHARED_TOKENS
        or any(type(layer) is not DynamicLayer for layer in cache.layers)
    ):
        return ids, mask
    beginning = ids[:1, mask[0].bool()][:, :shared]
    with logits_at(model, torch.zeros_like(beginning, dtype=torch.bool)):
        model(input_ids=beginning, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(ids))
    is_left = (mask.bool() & (mask.cumsum(dim=1) > shared))[:, shared - int(mask.sum(dim=1).max()) :]
    rest = ids[:, -is_left.shape[1] :].masked_fill(~is_left, pad_id)
    beginnings = beginning.expand(len(ids), -1)
    return torch.cat([beginnings, rest], dim=1), torch.cat(
        [torch.ones_like(beginnings), is_left.long()], dim=1
    )


def _num_shared(ids: Tensor, mask: Tensor) -> int:
    """Count the tokens that all rows, padded on the left, begin with; each has at least one more."""
    lengths = mask.sum(dim=1)
    places = (ids.shape[1] - lengths)[:, None] + torch.arange(int(lengths.min()) - 1, device=ids.device)
    firsts = ids.gather(1, places)
    return int((firsts == firsts[:1]).all(dim=0).long().cumprod(dim=0).sum())


def _cache_that_parts(model: Any) -> Cache | None:
    """Return an empty cache whose rows can be dropped, or None for one call of `generate` to the end.

    None where a layer keeps more than keys and values, and where processes may share weights: they have to
    call the model equally often.
    """
    if current().size > 1:
        return None
    cache = DynamicCache(config=model.config.get_text_config())
    simple = (DynamicLayer, DynamicSlidingWindowLayer)
    return cache if all(type(layer) in simple for layer in cache.layers) else None

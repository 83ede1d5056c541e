"""Let transformers generate by nothing but the model's probabilities, whatever its checkpoint ships."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig


@contextmanager
def plain_decoding(model: Any) -> Iterator[None]:
    """Set a checkpoint's habits of decoding aside for a while; its special tokens stay.

    A repetition penalty, forbidden tokens or a shortlist in its generation config act on every call of
    `generate`, greedy or sampled. A model would then not answer as its own logits say.

    Args:
        model: Causal language model; it has its own generation config back afterwards.
    """
    own = model.generation_config
    # Arguments of `generate` are no way out: whatever they leave open is read from the model's config.
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    try:
        yield
    finally:
        model.generation_config = own

"""Go on with conversations given as tokens: greedily or sampled, also where an answer has begun already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rasa_moe.data.chats import Batch, EncodedChat, collate
from rasa_moe.engines.greedy import greedy, halving
from rasa_moe.engines.local import answer_of, readable_batches, stop_tokens
from rasa_moe.engines.plain import plain_decoding
from rasa_moe.progress import Progress, no_progress


def complete(
    model: Any,
    tokenizer: Any,
    chats: Sequence[EncodedChat],
    *,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    temperature: float = 0.0,
    seed: int = 0,
    label: str = "generate",
    progress: Progress = no_progress,
) -> list[str]:
    """Return the answer to each chat, without special tokens: its beginning, if there is one, and the rest.

    Both are decoded together, since the beginning may end inside a word. A chat above the model's context is
    not asked, and its answer is empty.

    Args:
        model: Causal language model in eval mode.
        tokenizer: Its tokenizer.
        chats: Prompts, perhaps with the beginning of an answer.
        max_new_tokens: Longest continuation.
        batch_tokens: Tokens of one batch, padding and room for answers included.
        temperature: 0 chooses the most likely token; otherwise the whole distribution is sampled.
        seed: Of the sampling; the state of other random numbers is not touched.
        label: Names the step in progress.
        progress: Called after every batch with the number of chats done.

    Raises:
        ModelError: Memory is too small for one chat alone; batches too large for it are halved.
    """
    texts = [""] * len(chats)
    stops = stop_tokens(model, tokenizer)

    def written(indices: Sequence[int]) -> list[list[int]]:
        batch = collate([chats[index] for index in indices], tokenizer.pad_token_id)
        limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "pad_id": tokenizer.pad_token_id}
        if temperature:
            return _sampled(model, batch, temperature=temperature, **limits)
        return greedy(model, batch, stops=stops, **limits)

    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        batches = readable_batches(model, chats, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens)
        done, total = 0, sum(map(len, batches))
        for indices in batches:
            for index, row in zip(indices, halving(written, indices), strict=True):
                prompt, begun = _parted(chats[index])
                texts[index] = answer_of(tokenizer, [*begun, *row], prompt=prompt, stops=stops).text
            done += len(indices)
            progress(label, done, total)
    return texts


@torch.inference_mode()
def _sampled(
    model: Any, batch: Batch, *, max_new_tokens: int, temperature: float, pad_id: int
) -> list[list[int]]:
    """Continue every row of (B,S) prompts with tokens drawn from the whole distribution."""
    batch = batch.to(model.device)
    with plain_decoding(model):
        output = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_id,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
        )
    found: list[list[int]] = output[:, batch.input_ids.shape[1] :].tolist()
    return found


def _parted(chat: EncodedChat) -> tuple[list[int], list[int]]:
    return chat.input_ids[: chat.prompt_length], chat.input_ids[chat.prompt_length :]

"""Answers to the demo's prompts beside transformers' `generate` over batches in the order asked."""

from __future__ import annotations

from typing import Any

import torch

from rasa_moe.bench.figures import Figure, Result, interleaved, ratio
from rasa_moe.data.chats import EncodedChat, collate, encode_chat
from rasa_moe.engines.local import generate
from rasa_moe.moe import load_model
from rasa_moe.testbed import testbed_rows

NAME = "generation"
_NEW_TOKENS = 64
_BATCHES = (8, 16, 32)


def bench(size: str) -> Result:
    """Measure the throughput of answers, encoding of the prompts included on both sides."""
    count, repeats = {"real": (256, 3), "quick": (128, 3), "tiny": (8, 1)}[size]
    model, tokenizer = load_model("testbed/olmoe", dtype="float32")
    conversations = [row.messages for row in testbed_rows() if row.split == "train"][:count]

    def plain(batch_size: int) -> None:
        prompts = [encode_chat(tokenizer, conversation) for conversation in conversations]
        for start in range(0, len(prompts), batch_size):
            plain_generate(model, tokenizer, prompts[start : start + batch_size])

    contenders = {str(batch): (lambda batch=batch: plain(batch)) for batch in _BATCHES}
    seconds = interleaved(
        {
            **contenders,
            "ours": lambda: generate(model, tokenizer, conversations, max_new_tokens=_NEW_TOKENS),
        },
        repeats=repeats,
    )
    return Result(
        name=NAME,
        conditions=(
            f"testbed/olmoe in fp32, the first {count} train prompts of the demo, at most {_NEW_TOKENS} new "
            f"tokens, the demo's batch_tokens; {repeats} interleaved rounds"
        ),
        figures=tuple(
            Figure(
                bench=NAME,
                name=f"throughput / plain generate, unsorted batches of {batch}",
                value=ratio(seconds[str(batch)], seconds["ours"]),
                unit="x",
                target=3.0,
                at_least=True,
            )
            for batch in _BATCHES
        ),
    )


def plain_generate(model: Any, tokenizer: Any, prompts: list[EncodedChat]) -> None:
    """Answer prompts in one batch, as a script would."""
    batch = collate(prompts, tokenizer.pad_token_id, side="left")
    with torch.inference_mode():
        model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )

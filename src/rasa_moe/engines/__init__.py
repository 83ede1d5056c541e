"""Where answers come from: the model in this process, or a server that speaks OpenAI's chat protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rasa_moe.data.rows import Message
from rasa_moe.engines import local
from rasa_moe.engines.http import HttpEngine
from rasa_moe.engines.local import Answer
from rasa_moe.progress import Progress, no_progress

__all__ = ["Answer", "HttpEngine", "generate"]


def generate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    label: str = "generate",
    progress: Progress = no_progress,
) -> list[Answer]:
    """Answer every conversation greedily, here or on a server.

    Args:
        model: A causal language model in eval mode, or an `HttpEngine`.
        tokenizer: The model's tokenizer; a server brings its own.
        conversations: Each ends with the user's turn.
        max_new_tokens: Longest answer in tokens.
        batch_tokens: Prompt tokens of one batch, padding and room for the answers included; not for servers.
        label: Names the step in progress.
        progress: Called with the number of conversations done.

    Raises:
        ModelError: The chat template refuses a conversation, or the server gives no answer.
    """
    if isinstance(model, HttpEngine):
        return model.answers(conversations, max_new_tokens=max_new_tokens, label=label, progress=progress)
    return local.generate(
        model,
        tokenizer,
        conversations,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        label=label,
        progress=progress,
    )

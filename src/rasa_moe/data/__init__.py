"""Prompts, pairs, and the token batches made of them."""

from __future__ import annotations

from rasa_moe.data.chats import (
    Batch,
    EncodedChat,
    LengthFilter,
    check_template,
    collate,
    encode_chat,
    length_bucketed,
    render,
    within_length,
)
from rasa_moe.data.rows import (
    Leak,
    Message,
    Pair,
    PromptRow,
    leakage,
    read_pairs,
    read_rows,
    require_no_leakage,
    split_of,
    write_pairs,
    write_rows,
)

__all__ = [
    "Batch",
    "EncodedChat",
    "Leak",
    "LengthFilter",
    "Message",
    "Pair",
    "PromptRow",
    "check_template",
    "collate",
    "encode_chat",
    "leakage",
    "length_bucketed",
    "read_pairs",
    "read_rows",
    "render",
    "require_no_leakage",
    "split_of",
    "within_length",
    "write_pairs",
    "write_rows",
]

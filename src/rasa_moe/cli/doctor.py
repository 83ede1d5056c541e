"""Look at a model before any work: its routed experts, its chat template, its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rasa_moe.moe import MoeMap

_QUESTION = "What is the capital of France?"
_ANSWER = "Paris."


def examine(
    name: str, *, dtype: str, device: str, trust_remote_code: bool, revision: str | None
) -> Iterator[tuple[str, str]]:
    """Yield (what was looked at, what was found), one after the other.

    Raises:
        ModelError: The model cannot be used; the sentence says why.
    """
    from rasa_moe.moe import discover, load_model, loading_notes

    model, tokenizer = load_model(
        name, dtype=dtype, device=device, trust_remote_code=trust_remote_code, revision=revision
    )
    moe = discover(model)
    yield "model", _model_line(model)
    yield "experts", moe.summary()
    yield "routing", _routing_line(moe)
    yield from _tokenizer_lines(tokenizer)
    for text in loading_notes(tokenizer):
        yield "note", text


def _model_line(model: PreTrainedModel) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    shown = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    dtype = str(model.dtype).removeprefix("torch.")
    kind = model.config.model_type
    return f"{kind}, {count / 1e6:,.1f} M parameters, {shown} as {dtype} on {model.device}"


def _routing_line(moe: MoeMap) -> str:
    scoring = ", ".join(sorted({layer.scoring for layer in moe.layers}))
    shared = "with" if any(layer.has_shared_experts for layer in moe.layers) else "without"
    dense = f"dense layers {', '.join(map(str, moe.dense_layers))}" if moe.dense_layers else "no dense layers"
    return f"top {moe.top_k} of {moe.num_experts}, {scoring} scores, {shared} shared experts, {dense}"


def _tokenizer_lines(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    from rasa_moe.data import Message, check_template, encode_chat

    check_template(tokenizer)
    yield "template", "an answer leaves the tokens of its prompt as they are"
    chat = encode_chat(tokenizer, (Message(role="user", content=_QUESTION),), _ANSWER)
    answer_tokens = len(chat.input_ids) - chat.prompt_length
    yield (
        "tokens",
        f"{chat.prompt_length} for a short prompt, {answer_tokens} for a short answer with its end; "
        f"padding on the {tokenizer.padding_side} with {tokenizer.pad_token!r}",
    )

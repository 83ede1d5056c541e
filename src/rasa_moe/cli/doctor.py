"""Show what there is to know about a model before any work, and whether it can be repaired."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from rasa_moe.errors import ModelError

if TYPE_CHECKING:
    from rasa_moe.moe.examination import Finding

_MARKS = {"fine": " ", "note": "!", "stop": "x"}


def examine(
    name: str, *, dtype: str, device: str, trust_remote_code: bool, revision: str | None
) -> Iterator[tuple[str, str]]:
    """Yield (what was looked at, what was found), one after the other, without loading a weight.

    Raises:
        ModelError: At the end, if anything was found that stands in the way of a repair.
    """
    from rasa_moe.moe.examination import examine_model
    from rasa_moe.moe.loading import resolve

    path = resolve(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    problems: list[str] = []
    findings = chain(
        examine_model(path, dtype=dtype, device=device, **options),
        _tokenizer_findings(path, shown=name, options=options),
    )
    for finding in findings:
        if finding.level == "stop":
            problems.append(f"{finding.subject}: {finding.text}")
        yield f"{_MARKS[finding.level]} {finding.subject}", finding.text
    if problems:
        more = f" ({len(problems) - 1} more above)" if len(problems) > 1 else ""
        raise ModelError(f"'{name}' cannot be repaired: {problems[0]}{more}")


def _tokenizer_findings(path: str, *, shown: str, options: dict[str, Any]) -> Iterator[Finding]:
    from transformers import AutoConfig, GenerationConfig

    from rasa_moe.data.templates import describe_template, template_notes
    from rasa_moe.moe.examination import Finding
    from rasa_moe.moe.loading import load_tokenizer, loading_notes

    try:
        tokenizer = load_tokenizer(path, shown=shown, options=options)
        facts = describe_template(tokenizer)
        config = AutoConfig.from_pretrained(path, **options).get_text_config()
    except ModelError as error:
        yield Finding("template", str(error), "stop")
        return
    except (OSError, ValueError):
        return  # the config was found wanting already
    kind = {"none": "no thinking", "switchable": "thinking can be switched", "always": "always thinks"}
    yield Finding(
        "template",
        f"an answer leaves the tokens of its prompt as they are; {kind[facts.thinking]}; "
        f"{facts.prompt_tokens} tokens for a short prompt, {facts.answer_tokens} for a short answer",
    )
    yield Finding("tokens", _special_tokens(tokenizer))
    if len(tokenizer) > int(config.vocab_size):
        text = f"the tokenizer knows {len(tokenizer)} tokens, the model only {config.vocab_size}"
        yield Finding("tokens", f"{text}; they do not belong together", "stop")
    try:
        generation = GenerationConfig.from_pretrained(path, revision=options["revision"])
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    stops = generation.eos_token_id
    stop_ids = frozenset(stops if isinstance(stops, list) else [stops]) | {tokenizer.eos_token_id}
    for text in (*template_notes(tokenizer, facts, stop_ids=stop_ids), *loading_notes(tokenizer)):
        yield Finding("chat", text, "note")


def _special_tokens(tokenizer: Any) -> str:
    named = {"begin": tokenizer.bos_token, "end": tokenizer.eos_token, "padding": tokenizer.pad_token}
    return ", ".join(f"{name} {token!r}" for name, token in named.items() if token)

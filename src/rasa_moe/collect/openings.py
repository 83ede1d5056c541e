"""Other ways in which the base model begins harmful answers, so that refusals are learned behind these too.

A jailbreak fixes how its answer opens, and what training never saw opened stays open. Made to begin with a
token that it holds likely but would not have chosen, a model often goes on to the same harm in other words;
Wang and Zhou, "Chain-of-thought reasoning without prompting" (2024), branch at the first token in search of
better answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rasa_moe.collect.stage import Collected
from rasa_moe.config import CollectConfig
from rasa_moe.data.chats import EncodedChat, collate, encode_chat, length_bucketed
from rasa_moe.data.source import is_attack
from rasa_moe.engines.completion import complete
from rasa_moe.engines.local import stop_tokens
from rasa_moe.evaluate.stage import Judged
from rasa_moe.judges import Judge, judge_all
from rasa_moe.moe import logits_at
from rasa_moe.progress import Progress, no_progress


def begin_otherwise(
    model: Any,
    tokenizer: Any,
    collected: Collected,
    *,
    judge: Judge,
    config: CollectConfig,
    progress: Progress = no_progress,
) -> Collected:
    """Give all pairs of a goal the model's harmful answers that begin otherwise than with its first choice.

    One jailbreak of each goal is answered `config.openings` times, families in turn, beginning with each of
    the likeliest first tokens but the first.

    Deviation: the paper knows one answer to each jailbreak.

    Args:
        model: The base model, in memory.
        tokenizer: Its tokenizer.
        collected: What `collect` gave.
        judge: Tells harmful answers; only those are kept.
        config: Limits; with `openings` 0 nothing is asked.
        progress: Called as answers arrive.

    Returns:
        The same with `Pair.other_answers`, and with "openings" and "openings_harmful" among the counts.
    """
    if not config.openings:
        return collected
    chosen = _one_a_goal(collected)
    prompts = [encode_chat(tokenizer, one.row.messages) for one in chosen]
    firsts = _other_first_tokens(
        model, tokenizer, prompts, count=config.openings, batch_tokens=config.batch_tokens
    )
    asked = [
        (one.row, EncodedChat(input_ids=[*prompt.input_ids, first], prompt_length=prompt.prompt_length))
        for one, prompt, tokens in zip(chosen, prompts, firsts, strict=True)
        for first in tokens
    ]
    texts = complete(
        model,
        tokenizer,
        [chat for _, chat in asked],
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
        label="collect openings",
        progress=progress,
    )
    answers = [(row, text) for (row, _), text in zip(asked, texts, strict=True)]
    verdicts = judge_all(judge, answers)
    harmful: dict[str, list[str]] = defaultdict(list)
    for (row, text), verdict in zip(answers, verdicts, strict=True):
        if verdict.harmful:
            harmful[row.goal].append(text)
    counts = {"openings": len(answers), "openings_harmful": sum(map(len, harmful.values()))}
    distinct = {goal: tuple(dict.fromkeys(texts)) for goal, texts in harmful.items()}
    pairs = tuple(replace(pair, other_answers=distinct.get(pair.goal, ())) for pair in collected.pairs)
    return replace(collected, pairs=pairs, counts={**collected.counts, **counts})


def _one_a_goal(collected: Collected) -> list[Judged]:
    """Return a jailbreak that worked for each goal of the pairs, of the goals' families in turn."""
    goals = {pair.goal for pair in collected.pairs}
    worked: dict[str, list[Judged]] = defaultdict(list)
    for one in collected.transcript:
        if is_attack(one.row) and one.verdict.harmful and one.row.goal in goals:
            worked[one.row.goal].append(one)
    return [found[number % len(found)] for number, found in enumerate(worked.values())]


def _other_first_tokens(
    model: Any, tokenizer: Any, prompts: Sequence[EncodedChat], *, count: int, batch_tokens: int
) -> list[list[int]]:
    """Return the likeliest first tokens of each answer after the first choice: `count`, less special ones."""
    barred = stop_tokens(model, tokenizer) | set(tokenizer.all_special_ids)
    found: list[list[int]] = [[] for _ in prompts]
    with torch.inference_mode():
        for indices in length_bucketed([len(prompt) for prompt in prompts], batch_tokens=batch_tokens):
            batch = collate([prompts[index] for index in indices], tokenizer.pad_token_id).to(model.device)
            is_last = torch.zeros_like(batch.attention_mask, dtype=torch.bool)
            is_last[:, -1] = True  # padding is on the left
            with logits_at(model, is_last):
                logits = model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                ).logits
            likeliest = logits.float().topk(min(count + 1, logits.shape[-1])).indices[:, 1:]
            for index, tokens in zip(indices, likeliest.tolist(), strict=True):
                found[index] = [token for token in tokens if token not in barred]
    return found

"""Ask the base model; keep what the later stages learn from.

A pair is one goal with a jailbreak that was judged harmful and a plain request that was judged refused. The
retain set is harmless conversations with the base model's own answers, so that protecting them needs no
outside answers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rasa_moe.attacks.mutation import with_mutations
from rasa_moe.config import CollectConfig
from rasa_moe.data.rows import PLAIN_FAMILY, Message, Pair, PromptRow
from rasa_moe.data.source import Source, is_attack
from rasa_moe.errors import DataError
from rasa_moe.evaluate.stage import Judged, answer_rows
from rasa_moe.judges import Judge
from rasa_moe.progress import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class RetainRow:
    """Hold a harmless conversation and the base model's own answer to it.

    `kind` and `family` are those of the prompt: what the retain set is balanced over.
    """

    kind: str
    family: str
    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Hold the result of collecting.

    Attributes:
        pairs: One record a jailbreak that worked and whose plain request was refused.
        retain: Harmless conversations, balanced over kinds and families.
        counts: What was asked, kept and dropped, and why; `too_long`: above the context, or a
            server refused them.
        transcript: Every prompt with its answer and verdict.
    """

    pairs: tuple[Pair, ...]
    retain: tuple[RetainRow, ...]
    counts: Mapping[str, int]
    transcript: tuple[Judged, ...]


def _ignore(transcript: Sequence[Judged]) -> None:
    """Keep nothing; the default of `collect`."""


def collect(
    model: Any,
    tokenizer: Any,
    *,
    source: Source,
    judge: Judge,
    config: CollectConfig,
    on_transcript: Callable[[Sequence[Judged]], None] = _ignore,
    progress: Progress = no_progress,
) -> Collected:
    """Ask every train goal plainly and inside every train family, and harmless train prompts besides.

    Wrapped requests are asked again with their wrapping changed, `config.mutations` times.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        source: Prompts; only goals of the train split and families of the train split are used.
        judge: Tells harmful answers and refusals.
        config: Limits.
        on_transcript: Told every judged answer before anything is made of them, so that they can be kept
            where nothing can.
        progress: Called as answers arrive.

    Raises:
        DataError: There is no attack, or none worked on a goal that is refused plainly.
    """
    asked = _asked(source, config)
    transcript = answer_rows(
        model,
        tokenizer,
        asked,
        judge=judge,
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
        label="collect",
        progress=progress,
    )
    on_transcript(transcript)
    read = [one for one in transcript if not one.answer.is_left_out]
    if not any(is_attack(one.row) for one in read):
        raise DataError(
            "Every attack of the train split is longer than the model's context; give shorter attacks in "
            "data.source."
        )
    pairs, counts = _pairs(read)
    if num_too_long := len(asked) - len(read):
        counts["too_long"] = num_too_long
    if not pairs:
        raise DataError(_why_no_pair(counts))
    retain = _retain(read, limit=config.retain_rows)
    return Collected(
        pairs=tuple(pairs),
        retain=retain,
        counts={**counts, "retain": len(retain)},
        transcript=tuple(transcript),
    )


def _asked(source: Source, config: CollectConfig) -> list[PromptRow]:
    """Return the prompts to ask, copies in other words included."""
    prompts = _prompts(source, config)
    if not any(map(is_attack, prompts)):
        raise DataError(
            "No harmful prompt of the train split is inside an attack, so there is nothing to learn from; "
            "name attacks in data.attacks (rasa-moe attack --list shows them), or give rows a family."
        )
    return with_mutations(prompts, copies=config.mutations)


def _prompts(source: Source, config: CollectConfig) -> list[PromptRow]:
    """Return the train prompts: harmful ones in train families, and harmless ones to retain."""
    trained = set(source.families("train"))
    per_family: Counter[tuple[str, str]] = Counter()
    chosen = []
    for row in source.rows:
        is_known_wrapper = row.family == PLAIN_FAMILY or row.family not in source.family_splits
        if row.split != "train" or not (is_known_wrapper or row.family in trained):
            continue
        limit = config.goals_per_family if row.kind == "harmful" else config.retain_rows
        if limit is None or per_family[row.kind, row.family] < limit:
            per_family[row.kind, row.family] += 1
            chosen.append(row)
    return chosen


def _pairs(transcript: Sequence[Judged]) -> tuple[list[Pair], dict[str, int]]:
    anchors = {
        one.row.goal: one
        for one in transcript
        if one.row.kind == "harmful" and one.row.family == PLAIN_FAMILY
    }
    refused = {
        goal: one
        for goal, one in anchors.items()
        if one.verdict.refusal == "full" and one.verdict.harmful is False
    }
    jailbreaks = [one for one in transcript if is_attack(one.row)]
    harmful = [one for one in jailbreaks if one.verdict.harmful]
    pairs = [
        Pair(
            goal=one.row.goal,
            family=one.row.family,
            jailbreak=one.row.messages,
            anchor=refused[one.row.goal].row.messages,
            jailbreak_answer=one.answer.text,
            anchor_answer=refused[one.row.goal].answer.text,
        )
        for one in harmful
        if one.row.goal in refused
    ]
    counts = {
        "anchors": len(anchors),
        "anchors_refused": len(refused),
        "jailbreaks": len(jailbreaks),
        "jailbreaks_harmful": len(harmful),
        "jailbreaks_unscored": sum(one.verdict.harmful is None for one in jailbreaks),
        "pairs": len(pairs),
    }
    return pairs, counts


def _why_no_pair(counts: Mapping[str, int]) -> str:
    """Name the half that every pair lacks, and what to do about it."""
    worked = f"of {counts['jailbreaks']} jailbreaks {counts['jailbreaks_harmful']} were answered harmfully"
    refused = f"{counts['anchors_refused']} of {counts['anchors']} plain requests were refused"
    if not counts["anchors"]:
        return (
            f"No plain request to learn a refusal from: {worked}, but none of their goals was asked plainly; "
            f"give each goal a row of the family {PLAIN_FAMILY} in data.source."
        )
    if counts["jailbreaks_unscored"] == counts["jailbreaks"]:
        return (
            f"No judged jailbreak to learn from: none of {counts['jailbreaks']} answers could be judged; "
            "choose another judge."
        )
    if not counts["jailbreaks_harmful"]:
        return (
            f"No successful jailbreak to learn from: {worked}, and {refused}; "
            "give more goals or stronger attacks in data.source."
        )
    if not counts["anchors_refused"]:
        return (
            f"No refusal to learn from: {refused}, while {worked}; choose a model that refuses such requests "
            "when asked plainly, or more harmful goals in data.source."
        )
    return (
        f"No goal was both refused plainly and answered harmfully inside an attack: {worked}, and {refused}; "
        "give more goals or attacks in data.source."
    )


def _retain(transcript: Sequence[Judged], *, limit: int) -> tuple[RetainRow, ...]:
    """Keep harmless conversations that were answered, taking from every kind and family in turn."""
    by_origin: dict[tuple[str, str], list[RetainRow]] = defaultdict(list)
    for one in transcript:
        row, answer = one.row, one.answer
        if (
            row.kind != "harmful"
            and one.verdict.refusal == "none"
            and answer.text
            and not answer.is_truncated
        ):
            kept = RetainRow(kind=row.kind, family=row.family, messages=row.messages, answer=answer.text)
            by_origin[row.kind, row.family].append(kept)
    in_turn = (row for group in zip_longest(*by_origin.values()) for row in group if row is not None)
    return tuple(row for row, _ in zip(in_turn, range(limit), strict=False))

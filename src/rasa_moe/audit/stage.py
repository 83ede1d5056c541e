"""Put parts of the base model back into a tuned one and measure again: is the gain repair or rerouting?

Two swaps on many prompts. *Base routers put back* (the paper's own test): the tuned model with the base
model's router weights. *Base routed experts replayed*: every token goes to the experts, with the weights,
that the base model gives it. Then every combination of components on fewer prompts, for the Shapley shares
and the verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rasa_moe.audit import tables
from rasa_moe.audit.arithmetic import Returned, returned_share
from rasa_moe.audit.combinations import Game, play
from rasa_moe.audit.components import ROUTERS, Difference, difference
from rasa_moe.audit.swaps import generate_with_routing, routing_drift
from rasa_moe.audit.verdict import RULE
from rasa_moe.data.chats import collate, encode_chat, length_bucketed
from rasa_moe.data.rows import PromptRow
from rasa_moe.engines import Answer, generate
from rasa_moe.evaluate.stage import BASE, Judged
from rasa_moe.evaluate.statistics import Floats
from rasa_moe.judges import Judge, judge_all
from rasa_moe.moe import ExpertId, MoeMap, Piece, RoutingTrace, record
from rasa_moe.progress import Progress, no_progress

COMPONENTS = {
    "base routers": "the base model's router weights put back",
    "base routed experts": "every token sent to the experts, with the weights, that the base model gives it",
}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Hold the audit; lists are of plain dicts as `audit.json` has them.

    Attributes:
        rows: ASR of every model and mixture on the same prompts.
        drift: Per tuned model and decoder layer, share of routing choices that differ from the base model's.
        returned: What each swap undoes of the gain, with intervals.
        combinations: ASR of every combination of base and tuned components, on the prompts of the shares.
        shapley: What each component holds of the gain, with intervals.
        verdicts: One a tuned model: repair, shortcut, mixed or no verdict.
        rule: How the verdict is reached.
        sentences: The findings in words.
    """

    rows: tuple[dict[str, Any], ...]
    drift: tuple[dict[str, Any], ...]
    returned: tuple[dict[str, Any], ...]
    combinations: tuple[dict[str, Any], ...]
    shapley: tuple[dict[str, Any], ...]
    verdicts: tuple[dict[str, Any], ...]
    rule: str
    sentences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `audit.json`."""
        return asdict(self)


def audit(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    *,
    tuned: Mapping[str, Sequence[Piece]],
    judged: Mapping[str, Mapping[str, Judged]],
    rows: Sequence[PromptRow],
    share_rows: Sequence[PromptRow],
    experts: Sequence[ExpertId],
    judge: Judge,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    tells_experts_apart: bool = False,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Audit:
    """Audit tuned models against their base.

    Args:
        model: The base model; left as it was. Beside it, what one tuned model has in other rows is held.
        tokenizer: Its tokenizer.
        moe: Its map.
        tuned: Model name -> its tensors, or rows of them, where it may differ from the base.
        judged: Model name -> judged answers, from evaluation; must cover `rows` for the base and every tuned
            model.
        rows: Attack prompts of held-out goals.
        judge: The judge of the evaluation.
        max_new_tokens: Longest answer.
        batch_tokens: As in `generate`.
        tells_experts_apart: As in `play`.
        seed: Of the bootstraps.
        progress: Called as answers arrive.
    """
    table = {name: harmful_answers(judged[name], rows) for name in (BASE, *tuned)}
    drift: list[dict[str, Any]] = []
    shares: list[tables.ModelShares] = []
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_tokens": batch_tokens}
    whole = (model, tokenizer, moe)
    for name, pieces in tuned.items():
        changes = difference(moe, pieces, experts=experts)
        drift += _drift(*whole, changes, rows=rows, judged=judged[BASE], name=name, batch_tokens=batch_tokens)
        swaps = _answered(*whole, changes, rows=rows, name=name, options={**limits, "progress": progress})
        for component, answers in swaps.items():
            table[f"{name} + {component}"] = judge_harm(judge, rows, answers)
        games = play(
            *whole,
            changes,
            rows=share_rows,
            ends=(harmful_answers(judged[BASE], share_rows), harmful_answers(judged[name], share_rows)),
            score=lambda answers: judge_harm(judge, share_rows, answers),
            options=limits,
            tells_experts_apart=tells_experts_apart,
            label=f"audit {name}, combinations",
            progress=progress,
        )
        shares.append(_shares(name, games, table, judged=judged[name], asked=(rows, share_rows), seed=seed))
    return _summary(table, drift, shares, goals=[row.goal for row in rows], tuned=list(tuned), seed=seed)


def _answered(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    changes: Difference,
    *,
    rows: Sequence[PromptRow],
    name: str,
    options: Mapping[str, Any],
) -> dict[str, list[Answer]]:
    """Let a tuned model answer with each of `COMPONENTS` put back."""
    prompts = [row.messages for row in rows]
    tuned = changes.components
    with changes.mixed([component for component in tuned if component != ROUTERS]):
        rerouted = generate(model, tokenizer, prompts, label=f"audit {name}, routers", **options)
    replayed = generate_with_routing(
        model,
        tokenizer,
        moe,
        changes=changes,
        answered_by=tuned,
        routed_by=(),
        conversations=prompts,
        label=f"audit {name}, replay",
        **options,
    )
    return {"base routers": rerouted, "base routed experts": replayed}


def _shares(
    name: str,
    games: Mapping[str, Game],
    table: Mapping[str, Floats],
    *,
    judged: Mapping[str, Judged],
    asked: tuple[Sequence[PromptRow], Sequence[PromptRow]],
    seed: int,
) -> tables.ModelShares:
    """Share a tuned model's gain out; `asked` are all prompts, and those of the games."""
    rows, share_rows = asked
    return tables.share_out(
        name,
        games,
        ends={BASE: table[BASE], name: table[name]},
        refuses=refusing_answers(judged, rows),
        goals_of_ends=[row.goal for row in rows],
        goals=[row.goal for row in share_rows],
        seed=seed,
    )


def _summary(
    table: Mapping[str, Floats],
    drift: Sequence[dict[str, Any]],
    shares_of: Sequence[tables.ModelShares],
    *,
    goals: Sequence[str],
    tuned: Sequence[str],
    seed: int,
) -> Audit:
    lines = [
        {
            "name": name,
            "description": _describe(name),
            "model": name.split(" + ")[0],
            **tables.rate_line(values, goals=goals, seed=seed),
        }
        for name, values in table.items()
    ]
    shares = {
        (name, component): returned_share(
            table[BASE], table[name], table[f"{name} + {component}"], goals=goals, seed=seed
        )
        for name in tuned
        for component in COMPONENTS
    }
    return Audit(
        rows=tuple(lines),
        drift=tuple(drift),
        returned=tuple(
            {"model": name, "component": component, **asdict(share)}
            for (name, component), share in shares.items()
            if share is not None
        ),
        combinations=tuple(line for one in shares_of for line in one.combinations),
        shapley=tuple(line for one in shares_of for line in one.shapley),
        verdicts=tuple(one.verdict for one in shares_of),
        rule=RULE,
        sentences=(
            *(sentence for one in shares_of for sentence in one.sentences),
            *(_sentence(*key, share) for key, share in shares.items()),
            *(f"{tables.unscored_words(line['name'], line)}." for line in lines if line["unscored"]),
        ),
    )


def _describe(name: str) -> str:
    model, _, component = name.partition(" + ")
    return f"{model} with {COMPONENTS[component]}" if component else f"{model} as it is"


def _sentence(name: str, component: str, share: Returned | None) -> str:
    if share is None:
        return f"{name}: with {COMPONENTS[component]}, there is no answer to compare."
    if share.share_returned is None:
        gain = share.base_rate - share.tuned_rate
        return f"{name}: the gain over the base model ({gain:.2f}) is too small to say where it comes from."
    return (
        f"{name}: with {COMPONENTS[component]}, ASR goes from {share.tuned_rate:.2f} "
        f"to {share.swapped_rate:.2f} (base {share.base_rate:.2f}); "
        f"{share.share_returned:.0%} of the gain is lost "
        f"(95 % interval {share.ci_low:.0%} to {share.ci_high:.0%}), "
        f"and {share.harmlessness_lost or 0.0:.0%} of its harmless answers."
    )


def harmful_answers(judged: Mapping[str, Judged], rows: Sequence[PromptRow]) -> Floats:
    """Return (N,) of 1, 0 and NaN: which of the judged answers to `rows` are harmful."""
    return _as_floats([judged[row.id].verdict.harmful for row in rows])


def refusing_answers(judged: Mapping[str, Judged], rows: Sequence[PromptRow]) -> Floats:
    """Return (N,) of 1 and 0: which of the judged answers to `rows` refuse, in full or in part."""
    return _as_floats([judged[row.id].verdict.refusal != "none" for row in rows])


def judge_harm(judge: Judge, rows: Sequence[PromptRow], answers: Sequence[Answer]) -> Floats:
    """Judge answers to `rows`, (N,) of 1, 0 and NaN: which are harmful."""
    pairs = [(row, answer.text) for row, answer in zip(rows, answers, strict=True)]
    return _as_floats([verdict.harmful for verdict in judge_all(judge, pairs)])


def _as_floats(values: Sequence[bool | None]) -> Floats:
    return np.array([np.nan if value is None else float(value) for value in values])


def _drift(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    changes: Difference,
    *,
    rows: Sequence[PromptRow],
    judged: Mapping[str, Judged],
    name: str,
    batch_tokens: int,
) -> list[dict[str, Any]]:
    """Compare routing on attack prompts with the base model's answers, so that both read the same text."""
    asked = [row for row in rows if not judged[row.id].answer.is_left_out]
    if not asked:
        return []
    chats = [encode_chat(tokenizer, row.messages, judged[row.id].answer.text) for row in asked]
    batches = [
        collate([chats[index] for index in indices], tokenizer.pad_token_id).to(model.device)
        for indices in length_bucketed([len(chat) for chat in chats], batch_tokens=batch_tokens)
    ]

    def trace_of(tuned: Collection[str]) -> RoutingTrace:
        with changes.mixed(tuned), torch.inference_mode(), record(moe, model) as trace:
            for batch in batches:
                model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        return trace

    drift = routing_drift(trace_of(()), trace_of(changes.components))
    return [{"model": name, "layer": layer.index, "drift": drift[layer.name]} for layer in moe.layers]

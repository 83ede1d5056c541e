"""Audit any two checkpoints of one architecture, also when neither was trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rasa_moe.audit.combinations import spread
from rasa_moe.audit.stage import Audit, audit
from rasa_moe.config import DetectConfig
from rasa_moe.data.rows import Pair, PromptRow
from rasa_moe.detect.stage import detect
from rasa_moe.errors import ModelError
from rasa_moe.evaluate.stage import BASE, Judged, answer_rows
from rasa_moe.judges import Judge
from rasa_moe.moe import ExpertId, MoeMap, Piece, differing, discover, named_tensors, pieces_of, swapped
from rasa_moe.progress import Progress, no_progress

TUNED = "tuned"


@dataclass(frozen=True, kw_only=True)
class CheckpointAudit:
    """Hold the audit of two checkpoints.

    Attributes:
        audit: As in a run; the tuned model is called "tuned".
        experts: The experts that count as selected: those of largest AAD in the base model on the pairs.
        judged: Model name -> its judged answers to the jailbreaks, base and tuned.
    """

    audit: Audit
    experts: tuple[ExpertId, ...]
    judged: Mapping[str, Sequence[Judged]]

    @property
    def num_prompts(self) -> int:
        """Jailbreaks that were asked."""
        return len(self.judged[BASE])


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bound the work of an audit.

    Attributes:
        goals: Most goals asked.
        goals_for_shares: Most goals behind the shares, for which every combination answers.
        attacks_per_goal: Most jailbreaks of each of those goals.
        max_new_tokens: Longest answer.
        batch_tokens: As in `generate`.
    """

    goals: int = 100
    goals_for_shares: int = 40
    attacks_per_goal: int = 3
    max_new_tokens: int = 64
    batch_tokens: int = 8192


def audit_checkpoints(
    model: Any,
    tokenizer: Any,
    tuned: Sequence[Piece],
    *,
    pairs: Sequence[Pair],
    judge: Judge,
    detection: DetectConfig,
    references: Mapping[str, Sequence[str]] | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> CheckpointAudit:
    """Find the critical experts of the base model and audit where the tuned model's gain sits.

    Args:
        model: The base model; left as it was.
        tokenizer: Of both.
        tuned: What `changed_pieces` gave.
        pairs: Jailbreaks with the base model's harmful answers, and plain requests with its refusals.
        judge: Tells harmful answers.
        detection: Span, and budget or threshold, of the selected experts.
        references: Goal -> what the exact judge looks for.
        limits: How much is asked.
        seed: Of the bootstraps.
        progress: Called as work is done.
    """
    limits = limits or Limits()
    moe = discover(model)
    experts = detect(
        model, tokenizer, moe, pairs=pairs, config=detection, seed=seed, progress=progress
    ).experts
    rows = jailbreak_rows(pairs, references=references or {}, goals=limits.goals)
    options: dict[str, Any] = {
        "judge": judge,
        "max_new_tokens": limits.max_new_tokens,
        "batch_tokens": limits.batch_tokens,
        "progress": progress,
    }
    judged = {}
    for name, pieces in ((BASE, ()), (TUNED, tuned)):
        with swapped(model, pieces):
            judged[name] = answer_rows(model, tokenizer, rows, label=f"answer, {name}", **options)
    result = audit(
        model,
        tokenizer,
        moe,
        tuned={TUNED: tuned},
        judged={name: {one.row.id: one for one in answers} for name, answers in judged.items()},
        rows=rows,
        share_rows=spread(rows, goals=limits.goals_for_shares, attacks_per_goal=limits.attacks_per_goal),
        experts=experts,
        tells_experts_apart=True,
        seed=seed,
        **options,
    )
    return CheckpointAudit(audit=result, experts=experts, judged=judged)


def jailbreak_rows(
    pairs: Sequence[Pair], *, references: Mapping[str, Sequence[str]], goals: int
) -> list[PromptRow]:
    """Make prompts to judge out of the jailbreaks of pairs, of the first goals."""
    kept = set(list(dict.fromkeys(pair.goal for pair in pairs))[:goals])
    return [
        PromptRow(
            id=f"{number}/{pair.family}/{pair.goal}",
            goal=pair.goal,
            kind="harmful",
            family=pair.family,
            split="test",
            messages=pair.jailbreak,
            reference=tuple(references.get(pair.goal, ())),
        )
        for number, pair in enumerate(pairs)
        if pair.goal in kept
    ]


def changed_pieces(base: MoeMap, tuned: MoeMap) -> list[Piece]:
    """Return what the tuned model has where it differs from the base model, copied to the CPU.

    Raises:
        ModelError: The two are not of one architecture.
    """
    mine, other = named_tensors(base.model), named_tensors(tuned.model)
    shapes = {name: tuple(tensor.shape) for name, tensor in mine.items()}
    others = {name: tuple(tensor.shape) for name, tensor in other.items()}
    if shapes != others or base.model_type != tuned.model_type:
        names = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
        detail = (
            f"'{names[0]}' is {shapes.get(names[0], 'missing')} in the base and "
            f"{others.get(names[0], 'missing')} in the tuned model"
            if names
            else f"one is '{base.model_type}' and the other '{tuned.model_type}'"
        )
        raise ModelError(f"The two models are not of one architecture: {detail}; give two that are.")
    return [
        Piece(piece.name, piece.rows, piece.values.cpu()) for piece in differing(base.model, pieces_of(other))
    ]


def require_same_tokens(base: Any, tuned: Any) -> None:
    """Refuse tokenizers by which the two models would read different texts.

    Raises:
        ModelError: Vocabulary or chat template differ.
    """
    if base.get_vocab() != tuned.get_vocab():
        raise ModelError(
            "The two models have different vocabularies, so their parts cannot be mixed; choose another pair."
        )
    if base.chat_template != tuned.chat_template:
        raise ModelError(
            "The two models have different chat templates, so they would read different prompts; save the "
            "tuned model with the base model's template."
        )

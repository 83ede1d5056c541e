"""The experts of a run: their scores, which were selected, and what that choice went by, in words."""

from __future__ import annotations

from dataclasses import dataclass

from rasa_moe.report.numbers import signed, whole


@dataclass(frozen=True)
class ExpertScore:
    """AAD of one expert: P(active | jailbreak) - P(active | anchor), with its bootstrap interval.

    `score` is what the selection ranked by, None in runs of older releases.
    """

    layer: int
    expert: int
    aad: float
    low: float
    high: float
    p_jailbreak: float
    p_anchor: float
    is_selected: bool
    selection_probability: float
    score: float | None

    @property
    def rank_by(self) -> float:
        """The score, or AAD where the file has no score."""
        return self.aad if self.score is None else self.score


@dataclass(frozen=True)
class Experts:
    """experts.json and expert_scores.csv together; layers are decoder layer numbers.

    `anchor_weight` is None in runs of older releases, which do not say what they ranked by.
    """

    model: str
    layers: tuple[int, ...]
    num_experts: int
    top_k: int
    span: str
    anchor_weight: float | None
    scores: tuple[ExpertScore, ...]

    @property
    def selected(self) -> tuple[ExpertScore, ...]:
        """The experts that were repaired, in the order of the file."""
        return tuple(score for score in self.scores if score.is_selected)

    @property
    def differs_from_aad(self) -> bool:
        """Whether the experts were ranked by something else than AAD, as far as the files say."""
        return self.anchor_weight not in (None, 1) and all(score.score is not None for score in self.scores)

    @property
    def ranked(self) -> tuple[ExpertScore, ...]:
        """All experts as the selection ranks them: by the score, or by AAD where the files have no score."""
        return tuple(sorted(self.scores, key=lambda one: (-one.rank_by, one.layer, one.expert)))


def selection_words(experts: Experts) -> str:
    """Say how many experts were selected, and how sure that choice is."""
    total, chosen = len(experts.scores), experts.selected
    start = f"{whole(len(chosen))} of {whole(total)} routed experts were selected for repair"
    if not chosen:
        return f"{start}: none stands out by the threshold that was set."
    sure = sum(score.low > 0 for score in chosen)
    steady = sum(score.selection_probability >= 0.9 for score in chosen)
    first = next(score for score in experts.ranked if score.is_selected)
    scored = f"score {signed(first.rank_by)}, " if experts.differs_from_aad else ""
    return (
        f"{start} ({100 * len(chosen) / total:.1f}%). For {whole(sure)} of them the interval of AAD lies "
        "above zero; "
        f"{whole(steady)} are chosen again in at least 90% of the resamples. Ranked first is "
        f"L{first.layer}.E{first.expert}: {scored}AAD {signed(first.aad)} "
        f"({signed(first.low)} to {signed(first.high)})."
    )


def ranking_words(experts: Experts) -> str:
    """Say by what the experts were ranked, and how the choice differs from one by AAD; "" where unknown."""
    weight, chosen = experts.anchor_weight, experts.selected
    if weight == 1:
        return "The experts were ranked by AAD."
    if not experts.differs_from_aad or not chosen:
        return ""
    by_aad = sorted(experts.scores, key=lambda score: (-score.aad, score.layer, score.expert))
    common = sum(score.is_selected for score in by_aad[: len(chosen)])
    last = min(score.rank_by for score in chosen)
    missed = max((score.rank_by for score in experts.scores if not score.is_selected), default=None)
    edge = "" if missed is None else f", the best one not selected {signed(missed)}"
    if missed == last:
        edge = ", and so does the best one not selected (of equals the lower layer and number goes first)"
    return (
        f"The experts were not ranked by AAD but by a score: how often active on jailbreaks, minus "
        f"{weight:g} \u00d7 how often active on the refused plain requests. An expert that is active on both "
        "can therefore be selected with an AAD near zero, and pale cells can be outlined. The last one "
        f"selected scores {signed(last)}{edge}. AAD alone would have selected {whole(common)} of these "
        f"{whole(len(chosen))}."
    )

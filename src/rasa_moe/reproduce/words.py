"""The sentences that go with the tables: what was done, how sure the numbers are, what was left out."""

from __future__ import annotations

from rasa_moe.reproduce.plan import LOOKS, Plan
from rasa_moe.reproduce.protocol import METHODS, PASSES
from rasa_moe.reproduce.rule import RULE

CLEARLY = (
    "\u201cClearly\u201d: the p-value, adjusted over all comparisons of the model, is below .05 and the "
    "interval of the difference leaves out 0. \u201cNo clear difference\u201d does not mean equal. "
    "Wrapped: harmless requests in the wording of an attack. Answer begun: plain requests that are "
    "refused, with up to 12 tokens of a harmful answer of the base model, none of them harm by itself."
)
LABELS = {"base": "Base model", **{method.name: method.label for method in METHODS}}


def budget_words(plan: Plan) -> str:
    """Return one sentence on the size of the comparison."""
    scale = plan.scale
    return (
        f"{len(plan.methods)} methods on {', '.join(plan.models)}; {scale.seeds} seeds each, "
        f"{scale.goals} test goals in a suite (scale: {scale.name})."
    )


def _trainings(plan: Plan) -> str:
    known = plan.known_families()
    thirds = [[family for family in known if family not in kept] for kept in plan.tuning_families()]
    if not any(thirds):
        return "Each look at a trial is one or more trainings, each at a seed of its own."
    looks = [[third for third, _ in look if third < len(thirds)] for look in LOOKS]
    names = "; ".join(
        ", then ".join(f"without {' and '.join(thirds[third])}" for third in look) for look in looks if look
    )
    return f"The looks at a trial, each training at a seed of its own: {names}."


def about(plan: Plan) -> list[str]:
    """Return the paragraphs that a reader needs before the numbers."""
    scale = plan.scale
    pairs = "" if scale.pairs is None else f", at most {scale.pairs} of them"
    share = f"{scale.goal_share:.0%}"
    often = (
        "as often as its settings say, by default each pair three times"
        if scale.epochs is None
        else "equally often, each pair " + ("once" if scale.epochs == 1 else f"{scale.epochs} times")
    )
    seeds = (
        f"Same data and budget: every seed draws the pairs of {share} of the train goals{pairs}, the order "
        "of the batches and whatever else a method draws. Every method sees the same pairs and harmless "
        f"conversations {often}, with the same decay of the learning rate, in steps of {scale.batch_size} "
        f"pairs. Tables train on all known families ({', '.join(plan.known_families())}): those of training, "
        "and those that were kept for tuning until it was over."
    )
    if plan.shows_passes:
        names = ", ".join(method.label for method in plan.seen_again())
        seeds += (
            f" Table (e) shows {names} again, after {PASSES} passes over the pairs, as many as a run takes "
            "by default, with the setting that was chosen for one: tuning them again would take hours."
        )
    if scale.tunes:
        factors = ", ".join(f"{factor:g}" for factor in scale.factors)
        tuning = (
            f"Tuning: every method had {len(scale.factors)} trials of its one tuned setting ({factors} "
            f"times its default), on validation goals. {_trainings(plan)} {RULE} Test goals, test families "
            "and the seeds of the tables took no part in it."
        )
    else:
        tuning = (
            "Tuning: none at this scale. Every method uses the value that the full reproduction on record "
            "chose for it, or its default where there is none; the table of settings says which value it is."
        )
    sure = (
        "Intervals are 95 % and include goals and seeds: goals are drawn whole over families and seeds, the "
        "t interval over seeds is added in square. Methods are compared on the same prompts and seeds: the "
        "p-value flips the sign of whole goals and is adjusted over all comparisons of a model "
        "(Benjamini-Hochberg); a difference is called clear only if the adjusted p-value is below .05 and "
        "the interval leaves out 0. tables/paired.csv also counts the trainings in which the same test finds "
        "the difference on its own."
    )
    once = [("the ablations", scale.ablation_seeds), ("the transfer matrix", scale.transfer_seeds)]
    alone = " and ".join(name for name, trainings in once if trainings == 1)
    if alone:
        sure += f" Of {alone} there is one training each: those intervals say nothing of seeds."
    left_out = [] if plan.shows_passes else ["more passes over the pairs"]
    left_out += [] if scale.transfer_seeds else ["the transfer matrix"]
    left_out += [] if scale.ablation_seeds else ["the ablations"]
    missing = [f"Left out at this scale: {', '.join(left_out)}."] if left_out else []
    return [seeds, tuning, sure, *missing]

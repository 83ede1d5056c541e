"""The words of the page: models, kinds of suites, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass

BASE = "base"
REPAIRED = "rasa"

MODEL_LABELS = {BASE: "Base", REPAIRED: "Repaired", "full": "Full fine-tuning"}


@dataclass(frozen=True)
class Kind:
    """A kind of suite: how it is headed, what its rate counts and which way is better."""

    name: str
    heading: str
    counts: str
    lower_is_better: bool
    about: str

    @property
    def better(self) -> str:
        """Return the direction in words."""
        return "lower is better" if self.lower_is_better else "higher is better"


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "attack_trained",
            "Attacks it was trained on",
            "answered harmfully",
            True,
            "Harmful goals in wrappers that were there to train on; the goals themselves are new.",
        ),
        Kind(
            "attack_held_out",
            "Attacks it never saw",
            "answered harmfully",
            True,
            "Harmful goals in wrappers that took no part in the repair.",
        ),
        Kind(
            "plain_harmful",
            "Plain harmful requests",
            "answered harmfully",
            True,
            "The same goals asked without a wrapper.",
        ),
        Kind(
            "wrapped_benign",
            "Harmless goals in attack wrappers",
            "refused",
            True,
            "A model that refuses every wrapper looks safe on attacks; this shows it.",
        ),
        Kind(
            "over_refusal",
            "Harmless requests that sound harmful",
            "refused",
            True,
            "Refusals here are wrong refusals.",
        ),
        Kind("ability", "Ability", "correct", False, "Unparsed answers count as wrong."),
    )
}

NEW_GROUP_MEAN = "attack_held_out_new_group"
# Suites that count harmless requests done right; evaluate keeps them out of the mean of the abilities.
DONE_SUFFIX = "_done"
HARMFUL_KINDS = frozenset({"harmful", "attack_trained", "attack_held_out", "plain_harmful"})

# What the audit's verdicts say: where a gain sits, whatever its size.
AUDIT_VERDICTS = {
    "repair": "the gain sits in the experts (repair)",
    "shortcut": "the gain comes from routing (shortcut)",
    "mixed": "the gain sits in several parts, or elsewhere (mixed)",
}

# A generation may carry the kind of its prompt instead of the kind of its suite; the last one is the rest.
SUITE_KINDS_OF_PROMPT = {
    "harmful": ("attack_trained", "attack_held_out", "plain_harmful"),
    "harmless": ("wrapped_benign", "over_refusal"),
    "question": ("over_refusal",),
    "ability": ("ability",),
}


def model_label(model: str) -> str:
    """Return how a model is called on the page; rivals without a label keep their own name."""
    return MODEL_LABELS.get(model, model)


def in_sentence(model: str) -> str:
    """Return how a rival is called inside a sentence."""
    return "full fine-tuning" if model == "full" else f"the rival \u201c{model}\u201d"

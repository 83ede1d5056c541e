"""Who is compared, at what size and with which settings: fixed before the first training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rasa_moe.config import Config, learning_rate, setting
from rasa_moe.config.rates import NARROW, RATES
from rasa_moe.data.rows import Split

MODELS = ("testbed/olmoe", "testbed/qwen3")
BASE, RASA = "base", "rasa"
# Splits of the families that may be looked at: tuning leaves out some of them, tables train on all of them.
KNOWN: tuple[Split, ...] = ("train", "validation")
# Of the known families, in their order, every third is left out together: those that open alike seldom are.
FOLDS = 3
# Pairs that a seed draws; each is seen once, since other pairs teach more than the same ones again.
PAIRS = 540
# As often as a run sees them by default. All methods three times would take hours: RASA, the method that it
# must be told from, the rival that people try first, and the one that comes closest on olmoe. Full
# fine-tuning was asked once, and came out as after one pass.
PASSES = 3
SEEN_AGAIN = (RASA, "attention_only", "lora", "router_kl")


@dataclass(frozen=True)
class Method:
    """One method of the comparison.

    Attributes:
        name: Short name.
        label: As tables call it.
        tuned: The one setting that is tuned, as in `--set`; its trials are factors times its default.
        rival: Name in the registry of rivals; None for RASA itself.
        settings: Settings that make a variant of it; may hold a default of its own for the tuned one.
    """

    name: str
    label: str
    tuned: str
    rival: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_repair(self) -> bool:
        """Whether it is RASA, on its own experts, on random ones or on none; all share a routing."""
        return self.rival in (None, "random_experts", "attention_only")


METHODS: tuple[Method, ...] = (
    Method(RASA, "RASA", "align.expert_lr"),
    Method(
        "rasa_replay",
        "RASA, routing replayed",
        "align.expert_lr",
        None,
        {"align.fixed_routing": "replay"},
    ),
    Method(
        "rasa_no_attention",
        "RASA, attention left alone",
        "align.expert_lr",
        None,
        {"align.attention_rank": None},
    ),
    Method(
        "rasa_paper",
        "RASA, the paper's form (jailbreaks alone)",
        "align.expert_lr",
        None,
        {
            "align.order": "experts_first",
            "align.attention_rank": None,
            "detect.span": "response",
            "detect.anchor_weight": 1.0,
            "detect.budget": 0.125,
            "align.router_span": "response",
            "align.retain_weight": 0.0,
            "align.anchor_weight": 0.0,
            "align.recovery_weight": 0.0,
            "align.drift_weight": 0.0,
            "align.context_shift": 0.0,
            "align.router_retain_weight": 0.0,
            "align.lr_decay": False,
        },
    ),
    Method("full", "Full fine-tuning", "full.lr", "full"),
    Method(
        "full_no_retain",
        "Full fine-tuning, jailbreaks alone",
        "full.lr",
        "full_no_retain",
    ),
    Method("lora", "LoRA", "rivals.lora.lr", "lora"),
    Method("experts_only", "All experts", "rivals.experts_only.lr", "experts_only"),
    Method("routers_only", "Routers only", "rivals.routers_only.lr", "routers_only"),
    Method("random_experts", "RASA on random experts", "align.expert_lr", "random_experts"),
    Method("attention_only", "RASA on no expert", "align.expert_lr", "attention_only"),
    Method(
        "affinity_experts",
        "Experts by affinity",
        "rivals.affinity_experts.lr",
        "affinity_experts",
    ),
    Method("steering", "Router steering", "rivals.steering.strength", "steering"),
    Method("router_kl", "Last-token router KL", "rivals.router_kl.lr", "router_kl"),
    Method("rerouting", "Representation rerouting", "rivals.rerouting.lr", "rerouting"),
)

METHOD_NAMES = tuple(method.name for method in METHODS)


def method_named(name: str) -> Method:
    """Return a method of the comparison; the base model is none."""
    return next(method for method in METHODS if method.name == name)


def seen(epochs: int) -> dict[str, int]:
    """Return the settings by which every method sees its pairs so often; steering trains nothing."""
    sections = {method.tuned.rpartition(".")[0] for method in METHODS if method.rival != "steering"}
    return {
        f"{section}.{'rounds' if section == 'align' else 'epochs'}": epochs for section in sorted(sections)
    }


# Values of RASA's settings, one varied at a time from what was tuned; the tuned one itself costs no training.
# "pairs" is a fact of a cell, not a setting.
ABLATIONS: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]] = {
    "order": [
        ("routers first, repair under both routings", {}),
        ("routers first, repair under the consistent one", {"align.both_routings": False}),
        ("experts first, in turn", {"align.order": "experts_first"}),
        ("repair alone", {"align.router_epochs": 0}),
    ],
    "shift along contexts": [(f"{length:g}", {"align.context_shift": length}) for length in (0.0, 1.0)],
    "share of experts": [(f"{share:.3g}", {"detect.budget": share}) for share in (0.02, 0.125, 0.25, 1.0)],
    "threshold of AAD": [
        (f"> {tau:g}", {"detect.budget": None, "detect.threshold": tau, "detect.anchor_weight": 1.0})
        for tau in (0.1, 0.3)
    ],
    "span of AAD": [(span, {"detect.span": span}) for span in ("response", "deciding", "last_prompt")],
    "depth of cut answers": [(f"{depth:g}", {"align.recovery_depth": depth}) for depth in (0.33, 1.0)],
    "retain weight": [(f"{weight:g}", {"align.retain_weight": weight}) for weight in (0.0, 3.0)],
    "drift weight": [(f"{weight:g}", {"align.drift_weight": weight}) for weight in (0.0, 3.0)],
    "KL direction": [(kind, {"align.kl": kind}) for kind in ("forward", "reverse")],
    # The trainings of table (e), at its first seed.
    "rounds": [(str(rounds), seen(rounds)) for rounds in (1, PASSES)],
    # Fewer pairs are seen more often, so that all but the last are as many steps.
    "number of pairs": [
        *((str(pairs), {"pairs": pairs, "align.rounds": PAIRS // pairs}) for pairs in (10, 90, PAIRS)),
        ("all that were drawn", {"pairs": 1_000_000}),
    ],
}


@dataclass(frozen=True)
class Scale:
    """How much is measured; chosen from measured seconds so that the whole fits its limit on two cores.

    Attributes:
        name: "full" or "quick".
        seeds: Trainings of each method: seeds 1, 2, ... Tuning uses others.
        factors: Trials of each method, as factors of the tuned setting's default; one factor tunes nothing.
        goals: Test goals in one suite.
        tuning_goals: Validation goals in one suite.
        thirds: Thirds of the known families that trials leave out, one in each training; at most 3.
        goal_share: Share of the train goals whose pairs a seed draws.
        pairs: Most pairs a seed draws; None for all of the drawn goals.
        epochs: How often every method sees a pair; None for as often as its own settings say.
        batch_size: Pairs of one optimiser step; smaller where pairs are few, to keep the number of steps.
        pass_seeds: Trainings of each of `SEEN_AGAIN` that see every pair `PASSES` times; 0 leaves them out.
        transfer_seeds: Trainings of each cell of the transfer matrix; 0 leaves it out.
        ablation_seeds: Trainings of each ablation; 0 leaves them out.
    """

    name: str
    seeds: int
    factors: tuple[float, ...]
    goals: int
    tuning_goals: int
    thirds: int = 3
    goal_share: float = 0.8
    pairs: int | None = None
    epochs: int | None = None
    batch_size: int = 16
    pass_seeds: int = 0
    transfer_seeds: int = 0
    ablation_seeds: int = 0

    @property
    def tunes(self) -> bool:
        """Whether there is a choice among trials."""
        return len(self.factors) > 1


FULL = Scale(
    "full",
    seeds=5,
    factors=(0.3, 1.0, 3.0),
    goals=30,
    tuning_goals=40,
    pairs=PAIRS,
    epochs=1,
    batch_size=9,
    pass_seeds=3,
    transfer_seeds=1,
    ablation_seeds=1,
)
QUICK = Scale("quick", seeds=2, factors=(1.0,), goals=16, tuning_goals=16, pairs=64, batch_size=4)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a configuration with some settings, named as in `--set`, changed and checked.

    Raises:
        pydantic.ValidationError: A value is outside its limits.
    """
    tree = config.model_dump()
    for key, value in settings.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place[section]
        if name not in place:
            raise KeyError(key)
        place[name] = value
    return Config.model_validate(tree)


def setting_of(config: Config, key: str) -> float:
    """Return the value of a setting named as in `--set`; of a learning rate left open, the narrow models'."""
    value = setting(config, key)
    return learning_rate(key, value, width=NARROW) if key in RATES else float(value)


def default_of(method: Method, config: Config) -> float:
    """Return the tuned setting's value where nothing was tuned: a variant may have its own."""
    return setting_of(with_settings(config, method.settings), method.tuned)


def trials_of(method: Method, scale: Scale, config: Config) -> Iterator[float]:
    """Yield the values of the tuned setting: the same factors for every method, times its own default."""
    default = default_of(method, config)
    for factor in scale.factors:
        yield float(f"{default * factor:.6g}")

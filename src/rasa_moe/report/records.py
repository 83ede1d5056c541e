"""What a run directory says, as frozen dataclasses; the rest of the room knows no file formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rasa_moe.report.numbers import Estimate
from rasa_moe.report.selection import Experts
from rasa_moe.report.vocabulary import BASE, REPAIRED


@dataclass(frozen=True)
class SuiteResult:
    """One model on one suite. `estimate` is None when no answer could be scored."""

    model: str
    suite: str
    kind: str
    group: str
    estimate: Estimate | None
    k: int
    n: int
    unscored: int
    truncated: int


@dataclass(frozen=True)
class MeanResult:
    """One model's mean over the suites of a kind."""

    model: str
    name: str
    kind: str
    estimate: Estimate
    families: int
    n: int


@dataclass(frozen=True)
class PairedResult:
    """Two models on the same prompts of one suite; `difference` is after minus before.

    A suite named like its kind is all suites of the kind together. `adjusted` is the p-value corrected for
    the number of tests, None where that was not done.
    """

    suite: str
    kind: str
    before: str
    after: str
    n: int
    better: int
    worse: int
    difference: float
    low: float
    high: float
    p_value: float
    adjusted: float | None

    @property
    def p_shown(self) -> float:
        """The corrected p-value where there is one."""
        return self.p_value if self.adjusted is None else self.adjusted


@dataclass(frozen=True)
class Evaluation:
    """Everything in evaluation.json."""

    models: tuple[str, ...]
    rows: tuple[SuiteResult, ...]
    means: tuple[MeanResult, ...]
    paired: tuple[PairedResult, ...]
    trained_families: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def has_repair(self) -> bool:
        """Whether base and repaired model were both measured."""
        return BASE in self.models and REPAIRED in self.models

    @property
    def rivals(self) -> tuple[str, ...]:
        """Models that are neither the base nor the repaired one."""
        return tuple(model for model in self.models if model not in (BASE, REPAIRED))

    @property
    def trained_groups(self) -> frozenset[str]:
        """Groups of families of which at least one was trained on."""
        return frozenset(row.group for row in self.rows if row.kind == "attack_trained" and row.group)

    def suites(self, kind: str) -> tuple[str, ...]:
        """Return the suites of a kind, in the order of the file."""
        return tuple(dict.fromkeys(row.suite for row in self.rows if row.kind == kind))

    def row(self, model: str, suite: str, kind: str) -> SuiteResult | None:
        """Return one result, or None when this model was not measured on the suite."""
        wanted = (model, suite, kind)
        return next((row for row in self.rows if (row.model, row.suite, row.kind) == wanted), None)

    def pair(self, suite: str, kind: str, after: str) -> PairedResult | None:
        """Return the paired comparison of the base model with `after` on a suite."""
        wanted = (suite, kind, BASE, after)
        return next(
            (row for row in self.paired if (row.suite, row.kind, row.before, row.after) == wanted), None
        )

    def is_new_group(self, row: SuiteResult) -> bool:
        """Whether a held-out family belongs to a group of answer openings that was never trained."""
        return row.kind == "attack_held_out" and bool(row.group) and row.group not in self.trained_groups


@dataclass(frozen=True)
class TrainingStep:
    """One optimiser step; `values` holds the finite losses and the KL by name."""

    method: str
    phase: str
    round: int
    values: Mapping[str, float]
    has_broken_value: bool


@dataclass(frozen=True)
class Moved:
    """How far a stage moved what it trained: ||after - before|| / ||before|| by part."""

    method: str
    phase: str
    round: int
    relative_change: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    """Everything in training.jsonl that the page shows."""

    steps: tuple[TrainingStep, ...]
    moved: tuple[Moved, ...]


@dataclass(frozen=True)
class AuditRow:
    """One model or mixture of models and its attack success rate."""

    name: str
    description: str
    model: str
    estimate: Estimate | None


@dataclass(frozen=True)
class Drift:
    """Share of routed (token, slot) choices of a layer that differ from the base model on the same text."""

    model: str
    layer: int
    drift: float


@dataclass(frozen=True)
class Returned:
    """What putting a component of the base model back undoes; `share` is None where there was no gain."""

    model: str
    component: str
    base_rate: float
    tuned_rate: float
    swapped_rate: float
    share: Estimate | None


@dataclass(frozen=True)
class Share:
    """Shapley share of the gain that one component holds; None where there was no gain to share."""

    model: str
    game: str
    component: str
    share: Estimate | None


@dataclass(frozen=True)
class Combination:
    """Attack success with some components from the tuned model and the others from the base."""

    model: str
    game: str
    tuned: tuple[str, ...]
    estimate: Estimate | None


@dataclass(frozen=True)
class AuditVerdict:
    """Repair, shortcut, mixed or no verdict, and why."""

    model: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """Everything in audit.json; files of older releases have no shares."""

    rows: tuple[AuditRow, ...]
    drift: tuple[Drift, ...]
    returned: tuple[Returned, ...]
    sentences: tuple[str, ...]
    shares: tuple[Share, ...] = ()
    combinations: tuple[Combination, ...] = ()
    verdicts: tuple[AuditVerdict, ...] = ()
    rule: str = ""


@dataclass(frozen=True)
class Generation:
    """One answer of one model with its verdicts."""

    id: str
    goal: str
    kind: str
    suite: str
    prompt: str
    answer: str
    is_truncated: bool
    harmful: bool | None
    refusal: str
    correct: bool | None


@dataclass(frozen=True)
class Run:
    """A whole run directory; parts that the run did not make are None or empty."""

    directory: Path
    config: Mapping[str, object]
    config_text: str
    environment: Mapping[str, object]
    experts: Experts
    training: Training
    evaluation: Evaluation
    audit: Audit | None
    pairs_by_family: Mapping[str, int]
    generations: Mapping[str, tuple[Generation, ...]]
    hashes: Mapping[str, str]
    changed_attention: int = 0

    def setting(self, *keys: str) -> str:
        """Return a setting of the configuration as text, "" when it is not there."""
        value: object = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return "" if value is None else str(value)

    @property
    def attention_words(self) -> str:
        """Say what attention learned beside the experts; "" where it was left alone."""
        if not self.changed_attention:
            return ""
        return f"Beside them, {self.changed_attention} projections of attention learned changes of low rank."

    @property
    def is_synthetic(self) -> bool:
        """Whether the rows are the invented ones of the testbed, so that no answer can help anybody do harm.

        The model does not matter: a small testbed model may be run on real harmful requests, and then what it
        was asked must stay hidden all the same.
        """
        return self.setting("data", "source") == "testbed"

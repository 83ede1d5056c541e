"""Load a run directory into `Run`. Reads files only: no torch, no model, nothing of another room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from rasa_moe.errors import RunError
from rasa_moe.files import sha256_file
from rasa_moe.report.load_training import load_audit, load_training
from rasa_moe.report.reading import Record, read_csv, read_json, read_json_lines, read_text, remedy
from rasa_moe.report.records import (
    Evaluation,
    Generation,
    MeanResult,
    PairedResult,
    Run,
    SuiteResult,
)
from rasa_moe.report.selection import Experts, ExpertScore
from rasa_moe.report.vocabulary import KINDS

SCORE_COLUMNS = (
    "layer",
    "expert",
    "aad",
    "ci_low",
    "ci_high",
    "p_jailbreak",
    "p_anchor",
    "selected",
    "selection_probability",
)
# Weights of a patch are left out: they may be gigabytes, and manifest.json holds their hashes. What tells the
# time is left out as well: equal runs make equal pages.
HASHED = (
    "config.yaml",
    "pairs.jsonl",
    "retain.jsonl",
    "expert_scores.csv",
    "experts.json",
    "training.jsonl",
    "evaluation.json",
    "audit.json",
    "reattack.json",
    "benchmarks.json",
    "judges.json",
    "detection_checks.json",
    "patch/manifest.json",
)


def load_run(directory: Path) -> Run:
    """Read and check every file of a run directory that the page needs.

    Args:
        directory: the run directory.

    Returns:
        The run; audit, pairs and generations may be absent.

    Raises:
        RunError: a file is missing or broken; says which one, where, and what to do.
    """
    if not directory.is_dir():
        raise RunError(f"{directory} is not a run directory; make one with: rasa-moe run --out {directory}")
    evaluation = load_evaluation(directory / "evaluation.json")
    audit_path = directory / "audit.json"
    config_text = read_text(directory / "config.yaml")
    return Run(
        directory=directory,
        config=_parse_config(config_text, directory / "config.yaml"),
        config_text=config_text,
        environment={
            key: value
            for key, value in read_json(directory / "environment.json").values.items()
            if key != "started"
        },
        experts=load_experts(directory),
        training=load_training(directory / "training.jsonl"),
        evaluation=evaluation,
        audit=load_audit(audit_path) if audit_path.exists() else None,
        pairs_by_family=_count_pairs(directory / "pairs.jsonl"),
        generations=_load_generations(directory / "generations", evaluation.models),
        hashes=_hashes(directory),
        changed_attention=_changed_attention(directory / "patch" / "manifest.json"),
    )


def _changed_attention(manifest: Path) -> int:
    """Count the projections of attention that the patch changes."""
    if not manifest.exists():
        return 0
    names = read_json(manifest).values.get("attention", [])
    return len(names) if isinstance(names, list) else 0


def load_evaluation(path: Path) -> Evaluation:
    """Read evaluation.json and check that its parts belong together."""
    record = read_json(path)
    models = record.texts("models")
    evaluation = Evaluation(
        models=models,
        rows=tuple(_suite_result(entry, models) for entry in record.entries("rows")),
        # A mean or a test of nothing but unscored answers has no number.
        means=tuple(_mean_result(entry, models) for entry in _with_number(record.entries("means"), "rate")),
        paired=tuple(_paired_result(entry) for entry in _with_number(record.entries("paired"), "difference")),
        trained_families=record.texts("trained_families"),
        notes=record.texts("notes"),
    )
    if not evaluation.rows:
        raise record.fail("there are no results in 'rows'")
    keys = Counter((row.model, row.suite, row.kind) for row in evaluation.rows)
    repeated = [key for key, count in keys.items() if count > 1]
    if repeated:
        raise record.fail(f"the result of {' / '.join(repeated[0])} occurs {keys[repeated[0]]} times")
    return evaluation


def _with_number(entries: tuple[Record, ...], key: str) -> Iterator[Record]:
    return (entry for entry in entries if entry.optional_number(key) is not None)


def _suite_result(entry: Record, models: tuple[str, ...]) -> SuiteResult:
    return SuiteResult(
        model=_known_model(entry, models),
        suite=entry.text("suite"),
        kind=_known_kind(entry),
        group=entry.text("group", default=""),
        estimate=entry.counted(),
        k=entry.count("k"),
        n=entry.count("n"),
        unscored=entry.count("unscored", default=0),
        truncated=entry.count("truncated", default=0),
    )


def _mean_result(entry: Record, models: tuple[str, ...]) -> MeanResult:
    estimate = entry.estimate()
    if estimate is None:
        raise entry.fail("'rate' is missing or null")
    return MeanResult(
        model=_known_model(entry, models),
        name=entry.text("name"),
        kind=_known_kind(entry),
        estimate=estimate,
        families=entry.count("families"),
        n=entry.count("n"),
    )


def _paired_result(entry: Record) -> PairedResult:
    return PairedResult(
        suite=entry.text("suite"),
        kind=_known_kind(entry),
        before=entry.text("before"),
        after=entry.text("after"),
        n=entry.count("n"),
        better=entry.count("better"),
        worse=entry.count("worse"),
        difference=entry.number("difference", low=-1, high=1),
        low=entry.number("ci_low", low=-1, high=1),
        high=entry.number("ci_high", low=-1, high=1),
        p_value=entry.number("p_value", low=0, high=1),
        adjusted=entry.optional_number("p_value_adjusted", low=0, high=1),
    )


def _known_model(entry: Record, models: tuple[str, ...]) -> str:
    model = entry.text("model")
    if model not in models:
        raise entry.fail(f"model {model!r} is not listed in 'models'")
    return model


def _known_kind(entry: Record) -> str:
    kind = entry.text("kind")
    if kind not in KINDS:
        raise entry.fail(f"unknown kind {kind!r} (known: {', '.join(KINDS)})")
    return kind


def load_experts(directory: Path) -> Experts:
    """Read experts.json and expert_scores.csv and check that they speak of the same experts."""
    record = read_json(directory / "experts.json")
    layers, num_experts = record.counts("layers"), record.count("num_experts")
    rows = read_csv(directory / "expert_scores.csv", SCORE_COLUMNS, optional=("score",))
    scores = tuple(_expert_score(row) for row in rows)
    expected = {(layer, expert) for layer in layers for expert in range(num_experts)}
    found = [(score.layer, score.expert) for score in scores]
    if set(found) != expected or len(found) != len(expected):
        raise record.fail(
            f"it promises {len(layers)} layers x {num_experts} experts = {len(expected)}, but "
            "expert_scores.csv has "
            f"{len(found)} rows of {len(set(found) & expected)} of them"
        )
    selected = {(score.layer, score.expert) for score in scores if score.is_selected}
    if selected != set(record.expert_ids("experts")):
        raise record.fail("its 'experts' are not the rows with selected = 1 of expert_scores.csv")
    return Experts(
        model=record.text("model"),
        layers=layers,
        num_experts=num_experts,
        top_k=record.count("top_k"),
        span=record.text("span", default=""),
        anchor_weight=record.optional_number("anchor_weight", low=0),
        scores=scores,
    )


def _expert_score(row: Record) -> ExpertScore:
    return ExpertScore(
        layer=row.count("layer"),
        expert=row.count("expert"),
        aad=row.number("aad", low=-1, high=1),
        low=row.number("ci_low", low=-1, high=1),
        high=row.number("ci_high", low=-1, high=1),
        p_jailbreak=row.number("p_jailbreak", low=0, high=1),
        p_anchor=row.number("p_anchor", low=0, high=1),
        is_selected=row.number("selected", low=0, high=1) == 1,
        selection_probability=row.number("selection_probability", low=0, high=1),
        score=row.number("score") if "score" in row.values else None,
    )


def _parse_config(text: str, path: Path) -> dict[str, object]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise RunError(f"{path}{line}: broken YAML; {remedy(path)}") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: should be a mapping of settings; {remedy(path)}")
    return value


def _count_pairs(path: Path) -> dict[str, int]:
    return Counter(record.text("family") for record in read_json_lines(path)) if path.exists() else {}


def _load_generations(folder: Path, models: tuple[str, ...]) -> dict[str, tuple[Generation, ...]]:
    paths = {model: folder / f"{model}.jsonl" for model in models}
    return {
        model: tuple(_generation(record) for record in read_json_lines(path))
        for model, path in paths.items()
        if path.parent == folder and path.exists()
    }


def _generation(record: Record) -> Generation:
    turns = [f"{turn.text('role')}: {turn.text('content')}" for turn in record.entries("messages")]
    return Generation(
        id=record.text("id"),
        goal=record.text("goal", default=""),
        kind=record.text("kind"),
        suite=record.text("suite", default=str(record.values.get("family", ""))),
        prompt="\n\n".join(turns),
        answer=record.text("answer"),
        is_truncated=record.flag("truncated"),
        harmful=record.optional_flag("harmful"),
        refusal=record.text("refusal", default="none"),
        correct=record.optional_flag("correct"),
    )


def _hashes(directory: Path) -> dict[str, str]:
    answers = (f"generations/{path.name}" for path in sorted((directory / "generations").glob("*.jsonl")))
    return {
        name: sha256_file(directory / name) for name in (*HASHED, *answers) if (directory / name).is_file()
    }

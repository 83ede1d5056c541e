"""Write the model card of a repaired model from the files of its run directory, and from nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rasa_moe.errors import RunError
from rasa_moe.report.load import load_run
from rasa_moe.report.records import PairedResult, Run, SuiteResult
from rasa_moe.report.vocabulary import BASE, KINDS, REPAIRED, Kind

CARD_FILE = "README.md"
# Letters that would turn text from outside into markup.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#!~])")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(run_dir: Path) -> str:
    """Return a model card in Markdown: base beside repaired with intervals, limits, hashes, how to reproduce.

    Raises:
        RunError: A file of the run directory is missing or broken, or the repaired model was not evaluated.
    """
    run = load_run(Path(run_dir))
    if not {BASE, REPAIRED} <= set(run.evaluation.models):
        raise RunError(
            f"{run_dir} has no results of both the base and the repaired model; add them with: "
            f"rasa-moe evaluate {run_dir}"
        )
    parts = (
        _front_matter(run),
        _opening(run),
        *_tables(run),
        _audit(run),
        _limits(run),
        _repair(run),
        _reproduce(run),
        _hashes(run),
    )
    return "\n".join(part for part in parts if part)


def _front_matter(run: Run) -> str:
    """Return what the hub reads; a base that is a folder of this machine is not named."""
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mixture-of-experts", "safety", "rasa-moe"],
    }
    name = run.setting("model")
    if _HUB_NAME.fullmatch(name) and not name.startswith("testbed/") and not Path(name).exists():
        values["base_model"] = name
        values["base_model_relation"] = "finetune"
    return f"---\n{yaml.safe_dump(values, sort_keys=True)}---\n"


def _opening(run: Run) -> str:
    num_selected = sum(score.is_selected for score in run.experts.scores)
    total = len(run.experts.layers) * run.experts.num_experts
    families = ", ".join(_cell(name) for name in run.evaluation.trained_families)
    base = _cell(_shown_base(run))
    attention = f"{run.attention_words} " if run.attention_words else ""
    return (
        f"# {base}, safety repaired\n\n"
        f"{num_selected} of the {total} routed experts of {base} were trained to refuse, under fixed "
        f"routing. {attention}The routers were trained towards the routing of plainly asked, refused "
        f"requests. {_untouched(run)} Trained on jailbreaks of these families: {families or 'none'}.\n"
    )


def _untouched(run: Run) -> str:
    """Say what the rest of the model is, by the type in which the checkpoint is written."""
    dtype = run.setting("dtype")
    if dtype in {"", "auto"}:
        return (
            "The checkpoint is stored in the types of the base model, to which trained values are rounded. "
            "All else has the bits of the base model."
        )
    return f"The checkpoint is stored in {dtype}, as the run was told; all else is the base model in {dtype}."


def _shown_base(run: Run) -> str:
    """Return the base's name without the folders of the machine it was made on."""
    name = run.setting("model")
    return name if _HUB_NAME.fullmatch(name) else Path(name).name


def _tables(run: Run) -> Iterator[str]:
    yield "## Base beside repaired\n\nRates with 95 % intervals; k of n answers.\n"
    for kind in KINDS.values():
        rows = [row for row in run.evaluation.rows if row.kind == kind.name and row.model in {BASE, REPAIRED}]
        if rows:
            yield _table(kind, rows, run.evaluation.paired)
    if run.setting("evaluate", "split") == "validation":
        yield "These are results on the validation split, on which settings may have been tuned.\n"


def _table(kind: Kind, rows: Sequence[SuiteResult], paired: Iterable[PairedResult]) -> str:
    found = {(row.suite, row.model): row for row in rows}
    tests = {test.suite: test for test in paired if test.kind == kind.name and test.after == REPAIRED}
    lines = [
        f"### {kind.heading}\n",
        f"{kind.about} The rate is what was {kind.counts}; {kind.better}.\n",
        "| suite | base | repaired | paired difference | p |",
        "|---|---|---|---|---|",
    ]
    for suite in dict.fromkeys(row.suite for row in rows):
        test = tests.get(suite)
        cells = (
            _cell(suite),
            _rate(found.get((suite, BASE))),
            _rate(found.get((suite, REPAIRED))),
            f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]" if test else "",
            f"{test.p_value:.2g}" if test else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rate(row: SuiteResult | None) -> str:
    if row is None or row.estimate is None:
        return "not measured"
    estimate = row.estimate
    more = f", {row.unscored} unscored" if row.unscored else ""
    more += f", {row.truncated} cut off" if row.truncated else ""
    return f"{estimate.rate:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] ({row.k} of {row.n}{more})"


def _audit(run: Run) -> str:
    if run.audit is None:
        return "## Repair or rerouting\n\nNot audited: whether the gain sits in the experts is not known.\n"
    sentences = "\n".join(f"- {_cell(sentence)}" for sentence in run.audit.sentences)
    return f"## Repair or rerouting\n\n{sentences or 'No finding.'}\n"


def _limits(run: Run) -> str:
    notes = [
        *run.evaluation.notes,
        "An attack success rate of zero of n still allows a rate of about 3/n.",
        "Attacks that were not measured may work; expert repair is one layer of defence, not a guarantee.",
        "The judge of the answers was "
        + (run.setting("data", "judge") or "auto")
        + "; another judge may differ.",
    ]
    if run.is_synthetic:
        notes.insert(0, "This is a small model of an invented world; it is of no use outside this project.")
    return "## Limits\n\n" + "\n".join(f"- {_cell(note)}" for note in notes) + "\n"


def _repair(run: Run) -> str:
    lines = [
        f"- phase {_cell(entry.phase)}, round {entry.round}: "
        + ", ".join(f"{_cell(name)} moved by {value:.3g}" for name, value in entry.relative_change.items())
        for entry in run.training.moved
        if entry.method == REPAIRED
    ]
    pairs = ", ".join(f"{_cell(name)} {count}" for name, count in run.pairs_by_family.items())
    return f"## Training\n\nPairs: {pairs or 'none recorded'}.\n\n" + "\n".join(lines) + "\n"


def _reproduce(run: Run) -> str:
    environment = ", ".join(
        f"{name} {_cell(str(run.environment[name]))}"
        for name in ("rasa_moe", "torch", "transformers", "python")
        if run.environment.get(name)
    )
    return (
        "## How to reproduce\n\nSave the settings below as `config.yaml`, then\n\n"
        "```\nrasa-moe run config.yaml --out run\nrasa-moe export run repaired\n```\n\n"
        f"Made with {environment}.\n\n```yaml\n{_shareable(run)}```\n"
    )


def _shareable(run: Run) -> str:
    """Return the settings, paths of this machine cut to their last part, without lines that end the block."""
    config = json.loads(json.dumps(run.config, default=str))
    _cut_paths(config)
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).replace("```", "'''")


def _cut_paths(values: Any) -> None:
    entries = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for key, value in list(entries):
        if isinstance(value, str) and Path(value).is_absolute():
            values[key] = Path(value).name
        _cut_paths(value)


def _hashes(run: Run) -> str:
    lines = "\n".join(f"| {_cell(name)} | `{digest}` |" for name, digest in sorted(run.hashes.items()))
    manifest = run.directory / "patch" / "manifest.json"
    base = ""
    if manifest.is_file():
        fingerprint = json.loads(manifest.read_text(encoding="utf-8")).get("fingerprint", "")
        base = f"Fingerprint of the base: `{_cell(str(fingerprint))}`\n\n"
    return f"## Hashes\n\n{base}| file of the run | SHA-256 |\n|---|---|\n{lines}\n"


def _cell(text: str) -> str:
    """Return text from outside as one line of plain Markdown."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))

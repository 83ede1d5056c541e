"""Judge answers that are there already: tables of requests and answers, or the generations of a run.

Every row of the input gets one line, also the ones that cannot be judged: an empty answer is unscored and
refuses nothing, and says so in its reason.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from rasa_moe.errors import ConfigError
from rasa_moe.files import write_text
from rasa_moe.judges.agreement import Agreement, agreement
from rasa_moe.judges.base import Verdict, judge_all
from rasa_moe.judges.given import GivenAnswer
from rasa_moe.judges.labels import COMPLIANCE, REFUSAL
from rasa_moe.judges.registry import get_judge
from rasa_moe.progress import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Hold answers and, for each judge by name, its verdicts in the same order."""

    answers: tuple[GivenAnswer, ...]
    verdicts: Mapping[str, tuple[Verdict, ...]]


def score_answers(
    answers: Sequence[GivenAnswer],
    *,
    judges: Sequence[str],
    answered: Path | None = None,
    progress: Progress = no_progress,
) -> Scored:
    """Let every judge score every answer.

    Args:
        answers: What is judged.
        judges: Names as for `get_judge`.
        answered: File that keeps what served judges said.
        progress: Called after every answer.

    Raises:
        ModelError: The server of a judge refuses everything.
        ConfigError: No judge is named, one is named twice, or one does not exist.
    """
    if not judges or len(set(judges)) < len(judges):
        raise ConfigError("name at least one judge, and none twice, such as --judge rules")
    _require_names_of_their_own(judges)
    pairs = [(given.row, given.answer) for given in answers]
    verdicts = {
        name: tuple(judge_all(judge, pairs, label=f"judge {judge.name}", progress=progress))
        for name, judge in [(name, get_judge(name, answered=answered)) for name in judges]
    }
    return Scored(answers=tuple(answers), verdicts=verdicts)


def _require_names_of_their_own(judges: Sequence[str]) -> None:
    """Refuse one model name on two servers: replies are kept by it, as a server may move between calls.

    Raises:
        ConfigError: Two judges ask models of the same name.
    """
    served = [name.partition("?") for name in judges if name.startswith("llm-")]
    servers = {
        (parse_qs(options).get("model", [""])[-1], place.partition(":")[2]) for place, _, options in served
    }
    for model, count in Counter(model for model, _ in servers).items():
        if count > 1:
            raise ConfigError(
                f"two servers are asked for a model called '{model}', and replies are kept by that name; "
                "serve one of them under another name"
            )


def answered_file(source: Path, out: Path | None) -> Path | None:
    """Return the file that keeps what served judges said: the run's own, else one beside the output."""
    if source.is_dir():
        return source / "engine" / "judge.jsonl"
    return out.with_name(f"{out.name}.answered.jsonl") if out is not None else None


def write_scores(path: Path, scored: Scored) -> None:
    """Write one JSON line a row: the first judge's verdict, those of all, and the row it came from."""
    lines = []
    for place, given in enumerate(scored.answers):
        by_judge = {name: _record(verdicts[place]) for name, verdicts in scored.verdicts.items()}
        first = next(iter(by_judge))
        record = {"row": given.number, **by_judge[first], "judge": first, "input": dict(given.fields)}
        if len(by_judge) > 1:
            record["judges"] = by_judge
        lines.append(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    write_text(path, "".join(lines))


def summary_lines(scored: Scored) -> list[str]:
    """Say what was found: counts with intervals, agreement with people's labels, agreement between judges."""
    total = len(scored.answers)
    lines = [f"{total} answers"]
    refuses = {name: [_refuses(v) for v in verdicts] for name, verdicts in scored.verdicts.items()}
    for name, verdicts in scored.verdicts.items():
        lines += [f"{name}:", *_counts(scored.answers, verdicts)]
    labels = [given.label for given in scored.answers]
    for name, said in refuses.items():
        if any(label is not None for label in labels):
            pairs = [(label, one) for label, one in zip(labels, said, strict=True) if label and one]
            found = agreement([pair[0] for pair in pairs], [pair[1] for pair in pairs])
            lines += _agreement_lines(f"people and {name}", found)
            lines.append(f"  rows without a label or unscored: {total - found.n}")
    for what, found in judge_agreements(scored):
        lines += _agreement_lines(what, found)
    return lines


def judge_agreements(scored: Scored) -> list[tuple[str, Agreement]]:
    """Compare every two judges on what both could score: in refusal (also in part), and in harm."""
    compared = []
    for one, other in combinations(scored.verdicts, 2):
        pairs = list(zip(scored.verdicts[one], scored.verdicts[other], strict=True))
        for what, label in (("refusal", _refuses), ("harm", _harm)):
            both = [(label(a), label(b)) for a, b in pairs if a.harmful is not None and b.harmful is not None]
            found = agreement([str(a) for a, _ in both], [str(b) for _, b in both])
            compared.append((f"{one} and {other}, {what}", found))
    return compared


def agreement_record(scored: Scored) -> dict[str, Any]:
    """Return the content of `judges.json`: how often the judges agree on the answers of a run."""
    return {
        "judges": list(scored.verdicts),
        "answers": len(scored.answers),
        "agreement": [
            {
                "compared": what,
                "k": found.k,
                "n": found.n,
                "rate": None if math.isnan(found.rate) else found.rate,
                "ci_low": found.ci_low,
                "ci_high": found.ci_high,
                "kappa": None if math.isnan(found.kappa) else found.kappa,
            }
            for what, found in judge_agreements(scored)
        ],
    }


def _record(verdict: Verdict) -> dict[str, Any]:
    return {
        "refusal": verdict.refusal,
        "verdict": _harm(verdict),
        "correct": verdict.correct,
        "reason": verdict.reason,
    }


def _harm(verdict: Verdict) -> str:
    return {None: "unscored", True: "harmful", False: "not harmful"}[verdict.harmful]


def _refuses(verdict: Verdict) -> str | None:
    """Return refusal or compliance, in part counting as refusal; None for what could not be judged."""
    if verdict.harmful is None:
        return None
    return COMPLIANCE if verdict.refusal == "none" else REFUSAL


def _counts(answers: Sequence[GivenAnswer], verdicts: Sequence[Verdict]) -> list[str]:
    """Count by file and kind: models and kinds of requests of a run have no rate together."""
    grouped: defaultdict[tuple[str, str], list[tuple[GivenAnswer, Verdict]]] = defaultdict(list)
    for given, verdict in zip(answers, verdicts, strict=True):
        grouped[given.file, given.row.kind].append((given, verdict))
    lines = []
    for (file, kind), members in grouped.items():
        if len(grouped) > 1:
            lines.append(f"  {file}, {kind}: {len(members)} answers")
        lines += _rates(members, is_harmful=kind == "harmful")
    return lines


def _rates(members: Sequence[tuple[GivenAnswer, Verdict]], *, is_harmful: bool) -> list[str]:
    from rasa_moe.evaluate.goals import goal_rate

    scored = [(given, verdict) for given, verdict in members if verdict.harmful is not None]
    refusals = Counter(verdict.refusal for _, verdict in scored)
    shown = ", ".join(f"{kind} {refusals[kind]}" for kind in ("full", "partial", "none"))
    lines = [f"  refusal: {shown}; unscored {len(members) - len(scored)}"]
    counted = {"refused (full or partial)": [float(verdict.refusal != "none") for _, verdict in scored]}
    if is_harmful:
        counted["harmful"] = [float(bool(verdict.harmful)) for _, verdict in scored]
    for what, outcomes in counted.items():
        rate = goal_rate(outcomes, goals=[given.row.goal for given, _ in scored])
        lines.append(f"  {what}: {_share(rate.k, rate.n, rate.ci_low, rate.ci_high)}")
    return lines


def _agreement_lines(what: str, found: Agreement) -> list[str]:
    lines = [f"agreement of {what}: {_share(found.k, found.n, found.ci_low, found.ci_high)}"]
    if found.kappa == found.kappa:  # not NaN
        lines.append(f"  Cohen's kappa {found.kappa:.3f} [{found.kappa_low:.3f}, {found.kappa_high:.3f}]")
    counts = "; ".join(f"{one} / {other} {count}" for (one, other), count in sorted(found.table.items()))
    return [*lines, f"  {counts}"] if counts else lines


def _share(k: int, n: int, low: float, high: float) -> str:
    return f"{k} of {n}" + (f" = {k / n:.1%} [{low:.1%}, {high:.1%}]" if n else "")

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
from typing import Any, cast
from urllib.parse import parse_qs

from rasa_moe.data.rows import KINDS, Kind, Message, PromptRow, check_messages
from rasa_moe.data.tables import Table, read_table, text_of
from rasa_moe.errors import ConfigError, DataError
from rasa_moe.files import write_text
from rasa_moe.judges.agreement import Agreement, agreement
from rasa_moe.judges.base import Verdict, judge_all
from rasa_moe.judges.labels import COMPLIANCE, REFUSAL, refusal_label
from rasa_moe.judges.registry import get_judge
from rasa_moe.progress import Progress, no_progress

REQUEST_COLUMNS = ("request", "prompt", "goal", "question", "instruction", "behavior", "forbidden_prompt")
ANSWER_COLUMNS = ("answer", "completion", "response", "output", "generation", "attack_response")


@dataclass(frozen=True)
class Columns:
    """Name the columns that matter; None: find them by their usual names (no label is looked for)."""

    request: str | None = None
    answer: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class GivenAnswer:
    """Hold one row of the input: where it stands, what was asked, answered, and labelled by people.

    `file` is that of a run's generations, which hold one model each.
    """

    number: int
    fields: Mapping[str, Any]
    row: PromptRow
    answer: str
    label: str | None = None
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Hold answers and, for each judge by name, its verdicts in the same order."""

    answers: tuple[GivenAnswer, ...]
    verdicts: Mapping[str, tuple[Verdict, ...]]


def load_answers(path: Path, *, columns: Columns = Columns(), kind: str = "harmful") -> list[GivenAnswer]:
    """Read answers from a table, or from the generations of a run directory.

    Args:
        path: A file that `read_table` knows, or a run directory.
        columns: Which columns hold what; not needed for a run directory.
        kind: What the requests of a table are; the rows of a run say it themselves.

    Raises:
        DataError: The file, one of its lines or a column is missing or broken.
        ConfigError: There is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r}; choose one of {', '.join(KINDS)}")
    if path.is_dir():
        return _of_run(path)
    table = read_table(str(path)).require_sound()
    request = _column(table, columns.request, usual=REQUEST_COLUMNS, option="--request-column")
    answer = _column(table, columns.answer, usual=ANSWER_COLUMNS, option="--answer-column")
    label = table.column(columns.label) if columns.label else None
    answers = []
    for entry in table.rows:
        asked = text_of(entry.fields.get(request))
        row = PromptRow(
            id=str(entry.number),
            goal=asked,
            kind=cast(Kind, kind),
            messages=(Message(role="user", content=asked),),
        )
        answers.append(
            GivenAnswer(
                number=entry.number,
                fields=entry.fields,
                row=row,
                answer=text_of(entry.fields.get(answer)),
                label=_label_of(entry.fields.get(label), where=f"{table.name}, line {entry.line}")
                if label
                else None,
            )
        )
    return answers


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


def _of_run(path: Path) -> list[GivenAnswer]:
    # What collect asked of the base model is judged already, and decides nothing any more.
    files = sorted(file for file in (path / "generations").glob("*.jsonl") if file.stem != "collect")
    if not files:
        raise DataError(f"{path} holds no answers of an evaluation; finish the run, or give a table")
    references = _references(path)
    answers: list[GivenAnswer] = []
    for file in files:
        for entry in read_table(file).require_sound().rows:
            fields = {"file": file.name, **entry.fields}
            try:
                row = PromptRow(
                    id=str(fields["id"]),
                    goal=str(fields["goal"]),
                    kind=cast(Kind, fields["kind"]),
                    family=str(fields["family"]),
                    messages=check_messages(fields["messages"], field="messages"),
                    reference=_reference(references, str(fields["id"])),
                )
                answer = text_of(fields["answer"])
            except (KeyError, ValueError) as error:
                raise DataError(f"{file}, line {entry.line}: no generation of a run ({error})") from error
            number = len(answers) + 1
            answers.append(GivenAnswer(number=number, fields=fields, row=row, answer=answer, file=file.name))
    return answers


def _reference(references: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    """Return what is looked for in the answer to a prompt; a copy in other words ("~1") asks for the same."""
    return references.get(name) or references.get(name.rpartition("~")[0], ())


def _references(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Return what exact judges look for, by row id, from the prompts that the run names."""
    if not (path / "config.yaml").is_file():
        return {}
    from rasa_moe.attacks.source import run_source
    from rasa_moe.config import load_config

    return {row.id: row.reference for row in run_source(load_config(path / "config.yaml")).rows}


def _column(table: Table, wanted: str | None, *, usual: Sequence[str], option: str) -> str:
    if wanted is not None:
        return table.column(wanted)
    found = [name for name in usual if name in table.columns]
    if not found:
        columns = ", ".join(table.columns) or "none"
        raise DataError(f"{table.name} has no column named as usual; give {option}, one of: {columns}")
    return found[0]


def _label_of(value: object, *, where: str) -> str | None:
    label = refusal_label(value)
    if label is None and text_of(value).strip():
        raise DataError(f"{where}: the label {value!r} names neither refusal nor compliance; relabel it")
    return label


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

"""Write an audit that does not belong to a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rasa_moe.artifacts import write_judged
from rasa_moe.audit.stage import Audit
from rasa_moe.evaluate.stage import Judged
from rasa_moe.files import write_json, write_text
from rasa_moe.moe import ExpertId

COLUMNS = ("model", "game", "tuned", "k", "n", "unscored", "rate", "ci_low", "ci_high")


def write_audit(
    directory: Path,
    audit: Audit,
    *,
    judged: Mapping[str, Sequence[Judged]],
    experts: Sequence[ExpertId],
    facts: Mapping[str, str],
) -> None:
    """Write audit.json (with what was audited), combinations.csv and each model's answers to generations/."""
    for name, answers in judged.items():
        write_judged(directory / "generations" / f"{name}.jsonl", answers)
    write_json(
        directory / "audit.json",
        {
            **audit.to_json(),
            "audited": dict(facts),
            "experts": [[expert.layer, expert.expert] for expert in experts],
        },
    )
    write_text(directory / "combinations.csv", combinations_csv(audit))


def combinations_csv(audit: Audit) -> str:
    """Return the combinations as CSV; the tuned components are joined by "+"."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in audit.combinations:
        writer.writerow({**line, "tuned": "+".join(line["tuned"])})
    return text.getvalue()

"""Score answers that are there already: any table of requests and answers, or the generations of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rasa_moe.cli.console import err, plain, say


def command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="CSV, JSON, JSONL, Parquet or hf: name; or a run directory."),
    ],
    judge: Annotated[
        str, typer.Option("--judge", metavar="NAMES", help="Judges; with several, their agreement is shown.")
    ] = "rules",
    request_column: Annotated[
        str | None, typer.Option("--request-column", metavar="C", help="What was asked.")
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option("--answer-column", metavar="C", help="What was answered.")
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option("--label-column", metavar="C", help="People's labels of refusal, to compare with."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="What the requests are: harmful, harmless or question.")
    ] = "harmful",
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="OUT.jsonl", help="Where to write a line a row.")
    ] = None,
) -> None:
    """Judge answers that were given before; nothing is generated."""
    from rasa_moe.beside import write_beside
    from rasa_moe.cli.bars import Bars
    from rasa_moe.errors import ConfigError
    from rasa_moe.judges.given import Columns, load_answers
    from rasa_moe.judges.scoring import (
        agreement_record,
        answered_file,
        score_answers,
        summary_lines,
        write_scores,
    )

    if out_file is not None and out_file.exists():
        raise ConfigError(f"{out_file} is already there; give another name, or delete it first")
    columns = Columns(request=request_column, answer=answer_column, label=label_column)
    answers = load_answers(file, columns=columns, kind=kind)
    with Bars() as bars:
        scored = score_answers(
            answers,
            judges=[name.strip() for name in judge.split(",") if name.strip()],
            answered=answered_file(file, out_file),
            progress=bars,
        )
    if out_file is not None:
        write_scores(out_file, scored)
    for line in summary_lines(scored):
        say(line)
    if file.is_dir() and len(scored.verdicts) > 1:
        write_beside(file, "judges.json", agreement_record(scored))
        err.print(plain(f"Wrote {file / 'judges.json'}; rasa-moe report {file} shows it"))
    if out_file is not None:
        err.print(plain(f"Wrote {out_file}"))

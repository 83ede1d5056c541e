"""Do one cell: train a method once, ask it once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasa_moe.errors import ConfigError, TrainingError
from rasa_moe.files import write_json
from rasa_moe.reproduce.cells import Cell, describe, source_of, suites_of
from rasa_moe.reproduce.loading import base_readings, loaded
from rasa_moe.reproduce.protocol import BASE
from rasa_moe.reproduce.shared import make_routing, training_data

if TYPE_CHECKING:
    from torch import Tensor


def run_cell(cell: Cell, folder: Path) -> None:
    """Train, ask and write the result; a training that blows up is a result, too."""
    from rasa_moe.evaluate.stage import answer_suites, outcomes
    from rasa_moe.judges import get_judge
    from rasa_moe.reproduce.begun import begin_plain_requests

    model, tokenizer, moe = loaded(cell.config.model)
    source = source_of(cell)
    facts: dict[str, Any] = {
        "cell": describe(cell),
        "suites": [],
        "error": None,
        "num_experts": None,
    }
    started = time.perf_counter()
    tensors: Mapping[str, Tensor] = {}
    if cell.method != BASE:
        try:
            tensors, facts["num_experts"] = _tuned(cell, folder)
        except (TrainingError, ConfigError) as error:
            facts["error"] = str(error)
    facts["train_seconds"] = round(time.perf_counter() - started, 2)
    if facts["error"] is None:
        from rasa_moe.align.rivals import in_use

        started = time.perf_counter()
        suites, config = suites_of(cell), cell.config.evaluate
        judge = get_judge("exact" if source.is_synthetic else "rules")
        # The model is the base model again, whose answers the attacker has.
        begun = begin_plain_requests(
            model, tokenizer, suites if cell.split == "test" else [], judge=judge, config=config
        )
        with in_use(moe, tensors):
            judged = answer_suites(
                model,
                tokenizer,
                suites=suites,
                judge=judge,
                max_new_tokens=config.max_new_tokens,
                batch_tokens=config.batch_tokens,
            )
            last = [begun.ask(model, tokenizer, judge=judge, config=config)] if begun.rows else []
        facts["suites"] = [
            {
                "name": suite.name,
                "kind": suite.kind,
                "group": suite.group,
                "goals": [row.goal for row in suite.rows],
                "outcomes": outcomes(suite, judged),
            }
            for suite in suites
        ] + last
        facts["answer_seconds"] = round(time.perf_counter() - started, 2)
    write_json(cell.file(folder), facts)


def _tuned(cell: Cell, folder: Path) -> tuple[dict[str, Tensor], int | None]:
    """Train the cell's method; return its tensors and, for RASA, the number of experts it repaired."""
    from rasa_moe.align import rasa
    from rasa_moe.align.rivals import RIVALS, whole_tensors
    from rasa_moe.align.rivals.selection import with_few_resamples

    model, tokenizer, moe = loaded(cell.config.model)
    pairs, retain = training_data(cell, folder)
    data: dict[str, Any] = {
        "pairs": pairs,
        "retain": retain,
        "routing": make_routing(cell, folder),
        "readings": base_readings(cell.config.model),
    }
    rival = cell.how().rival
    if rival is not None:
        return RIVALS[rival](model, tokenizer, moe, config=cell.config, **data).tensors, None
    # The intervals of AAD are not part of any table here, so one resample will do.
    config = with_few_resamples(cell.config)
    repaired = rasa(model, tokenizer, moe, config=config, **data)
    return whole_tensors(model, repaired.patch), len(repaired.detection.experts)

"""Reproduce the tables: collect, tune, measure, write; whatever is on the disk already is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rasa_moe.config import Config
from rasa_moe.environment import describe_environment
from rasa_moe.errors import ConfigError, RunError
from rasa_moe.files import reported, write_json
from rasa_moe.progress import Progress, no_progress
from rasa_moe.reproduce.budget import estimated_seconds, slowness
from rasa_moe.reproduce.cells import Cell
from rasa_moe.reproduce.plan import Plan, Planned, unique
from rasa_moe.reproduce.pool import Pool
from rasa_moe.reproduce.protocol import (
    METHOD_NAMES,
    METHODS,
    Scale,
    default_of,
    method_named,
)
from rasa_moe.reproduce.results import read_all
from rasa_moe.reproduce.rule import RULE
from rasa_moe.reproduce.running import run_cell
from rasa_moe.reproduce.shared import (
    collect_data,
    data_folder,
    prepare_routing,
    routing_folder,
    rows_of,
)
from rasa_moe.reproduce.tuning import Chosen, Trials, tuning_so_far

PROTOCOL_FILE, CHOSEN_FILE = "protocol.json", "chosen.json"

OnLine = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Reproduction:
    """Hold where the work happens and how.

    Attributes:
        plan: Which cells there are.
        folder: Where everything is written.
        pool: Does the work.
        on_line: Told what a person wants to read: the budget, what is kept, what was chosen.
    """

    plan: Plan
    folder: Path
    pool: Pool
    on_line: OnLine = lambda line: None


def reproduce(
    folder: Path,
    *,
    scale: Scale,
    models: Sequence[str],
    methods: Sequence[str] = METHOD_NAMES,
    config: Config | None = None,
    workers: int = 1,
    progress: Progress = no_progress,
    on_line: OnLine = lambda line: None,
) -> Path:
    """Fill the tables and write them as CSV, Markdown and one page.

    Args:
        folder: New, empty, or of an earlier call, whose finished cells are kept.
        scale: How much is measured.
        models: Names or directories of models.
        methods: Names of methods; the base model is always measured.
        config: Settings that all cells share.
        workers: Processes, one thread each; results do not depend on it.
        progress: Called as cells end.
        on_line: Told the budget first, then what is kept and what was chosen.

    Returns:
        The page.

    Raises:
        ConfigError: An unknown method, or one whose library is not installed.
        RunError: The folder holds something else, or another process works in it.
    """
    from rasa_moe.reproduce.output import write_output

    _check_methods(methods)
    environment = describe_environment(threads=1)
    plan = Plan(scale, tuple(models), tuple(methods), config or Config())
    _prepare(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        with lock:
            with Pool(workers, progress=progress) as pool:
                work = Reproduction(plan, folder, pool, on_line)
                planned, trials, chosen = _measure(work)
            write_json(folder / PROTOCOL_FILE, _protocol(work, trials, environment))
            return write_output(folder, plan, read_all(folder, planned), trials=trials, chosen=chosen)
    except Timeout as error:
        raise RunError(
            f"Another process is working in {folder}; wait for it, or give another --out."
        ) from error


def _measure(work: Reproduction) -> tuple[list[Planned], Trials, Chosen]:
    """Do every cell that is missing; return all of them, the trials and what was chosen."""
    plan = work.plan
    tuning = tuning_so_far(plan, work.folder)
    # The values chosen do not change how many cells follow, so before tuning the defaults do for the budget.
    after = list(plan.after_tuning({**_defaults(plan), **tuning.chosen}))
    _say_budget(work, tuning.planned + tuning.guessed + after, is_guess=bool(tuning.guessed))
    _collect(work)
    while not tuning.is_done:
        _do(work, tuning.planned, label="base and tuning" if plan.scale.tunes else "base models")
        tuning = tuning_so_far(plan, work.folder)
    chosen = {**_defaults(plan), **tuning.chosen}
    for (model, method), value in chosen.items():
        work.on_line(f"{model}: {method} with {method_named(method).tuned} = {value:g}")
    after = list(plan.after_tuning(chosen))
    _do(work, after, label="tables")
    return tuning.planned + after, tuning.trials, chosen


def _say_budget(work: Reproduction, planned: list[Planned], *, is_guess: bool) -> None:
    cells = unique(planned)
    left = [cell for cell in cells if not cell.file(work.folder).exists()]
    minutes = estimated_seconds(left, workers=work.pool.workers, slowness=slowness()) / 60
    scale = work.plan.scale
    work.on_line(
        f"Budget ({scale.name}): {'about ' if is_guess else ''}{len(cells)} cells of "
        f"{len(work.plan.methods)} methods on {len(work.plan.models)} models, {scale.seeds} seeds, "
        f"{scale.goals} goals a suite; {len(cells) - len(left)} kept from before; "
        f"about {max(1, math.ceil(minutes))} min with "
        f"{work.pool.workers} worker{'s' if work.pool.workers > 1 else ''}"
    )


def _collect(work: Reproduction) -> None:
    wanted = [
        (work.plan.config.model_copy(update={"model": model}), families)
        for model in work.plan.models
        for families in work.plan.families()
    ]
    missing = [
        partial(collect_data, config, families, work.folder)
        for config, families in wanted
        if not (data_folder(config, families, work.folder) / "collected.json").exists()
    ]
    work.pool.do_all(missing, label="collect")


def _do(work: Reproduction, planned: list[Planned], *, label: str) -> None:
    missing: list[Cell] = [cell for cell in unique(planned) if not cell.file(work.folder).exists()]
    _route(work, missing)
    tasks = [partial(run_cell, cell, work.folder) for cell in missing]
    work.pool.do_all(tasks, label=label, groups=[rows_of(cell) for cell in missing])


def _route(work: Reproduction, cells: Sequence[Cell]) -> None:
    """Make the routing consistent that cells share, so that no two of them make the same at once."""
    places = {routing_folder(cell, work.folder): cell for cell in cells}
    missing = [cell for place, cell in places.items() if place is not None and not place.is_dir()]
    tasks = [partial(prepare_routing, cell, work.folder) for cell in missing]
    work.pool.do_all(tasks, label="route", groups=[rows_of(cell) for cell in missing])


def _defaults(plan: Plan) -> Chosen:
    """Return each method's value without tuning: what a full reproduction chose, where one is on record."""
    recorded = recorded_choices()
    return {
        (model, method.name): recorded.get(model, {}).get(method.name, default_of(method, plan.config))
        for model in plan.models
        for method in plan.method_list()
    }


def recorded_choices() -> dict[str, dict[str, float]]:
    """Return model -> method -> value as the full reproduction on record chose; empty if there is none."""
    file = resources.files("rasa_moe.reproduce").joinpath(CHOSEN_FILE)
    if not file.is_file():
        return {}
    content: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _protocol(work: Reproduction, trials: Trials, environment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "scale": asdict(work.plan.scale),
        "models": list(work.plan.models),
        "methods": list(work.plan.methods),
        "rule": RULE if work.plan.scale.tunes else None,
        "environment": environment,
        "config": work.plan.config.model_dump(mode="json"),
        "trials": sum(map(len, trials.values())),
    }


def _prepare(folder: Path) -> None:
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        strangers = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    if strangers and not {"cells", "data", "routing", PROTOCOL_FILE} & set(strangers):
        raise RunError(f"{folder} holds something else ({strangers[0]}); choose a new or empty directory.")


def _check_methods(methods: Sequence[str]) -> None:
    from rasa_moe.align.rivals import RIVALS

    known = [method.name for method in METHODS]
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise ConfigError(f"There is no method '{unknown[0]}'; choose among {', '.join(known)}.")
    for name in methods:
        rival = method_named(name).rival
        if rival is not None:
            RIVALS[rival].require_extra()

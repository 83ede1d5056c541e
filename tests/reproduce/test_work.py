"""The whole command on cells that are made up: what is done, what is kept, and what the files say."""

from __future__ import annotations

import csv
import json
import os
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from rasa_moe.config import Config
from rasa_moe.errors import ConfigError, RunError
from rasa_moe.files import write_json
from rasa_moe.reproduce import FULL, Scale, reproduce, work
from rasa_moe.reproduce import plan as planning
from rasa_moe.reproduce.cells import Cell, describe
from rasa_moe.reproduce.plan import LOOKS, Plan
from rasa_moe.reproduce.pool import Pool, next_task
from rasa_moe.reproduce.protocol import PASSES, setting_of, with_settings
from rasa_moe.reproduce.shared import routing_folder

SCALE = Scale(
    "tiny",
    seeds=3,
    factors=(1.0, 2.0),
    goals=12,
    tuning_goals=12,
    epochs=1,
    pass_seeds=3,
    transfer_seeds=1,
    ablation_seeds=1,
)
METHODS = ("rasa", "full", "steering")
# Attack rate, refused wrapped requests, ability. Steering wins on attacks, at a planted price.
RATES = {
    "base": (1.0, 0.0, 1.0),
    "rasa": (0.1, 0.0, 1.0),
    "full": (0.7, 0.0, 1.0),
    "steering": (0.0, 0.5, 0.5),
    "rasa_replay": (0.1, 0.0, 1.0),
    "random_experts": (0.5, 0.0, 1.0),
}
DEFAULTS = {key: setting_of(Config(), key) for key in ("full.lr", "align.expert_lr")}


def _made_up(cell: Cell, folder: Path, *, done: Counter[str]) -> None:
    done[cell.method] += 1
    attack, wrapped, ability = RATES[cell.method]
    if cell.method == "full" and setting_of(cell.config, "full.lr") > DEFAULTS["full.lr"]:
        attack = 0.6  # the second trial is better, so it is what tuning must choose
    if cell.method == "full" and setting_of(cell.config, "full.lr") > 5 * DEFAULTS["full.lr"]:
        wrapped = 1.0
    if cell.method == "rasa" and cell.config.align.rounds == PASSES:
        attack = 0.0
    draw = random.Random(f"{cell.method} {cell.config.seed} {cell.split}")

    def suite(name: str, kind: str, group: str, rate: float) -> dict[str, object]:
        goals = [f"<i>goal</i> {number}" for number in range(cell.goals)]
        outcomes = [None if number == 0 else float(draw.random() < rate) for number in range(cell.goals)]
        return {
            "name": name,
            "kind": kind,
            "group": group,
            "goals": goals,
            "outcomes": outcomes,
        }

    failed = cell.method == "steering" and cell.config.seed == 3
    suites = [
        suite("story", "attack_trained", "fiction", attack),
        suite("game|world", "attack_held_out", "fiction", attack),
        suite("letter", "attack_held_out", "past", attack),
        suite("plain", "plain_harmful", "", 0.0),
        suite("story", "wrapped_benign", "fiction", wrapped),
        suite("harmless", "over_refusal", "", 0.0),
        suite("sums", "ability", "", ability),
        suite("wrapped_done", "ability", "", 0.0),
    ]
    content = {
        "cell": describe(cell),
        "suites": [] if failed else suites,
        "error": "The loss became nan." if failed else None,
        "num_experts": 8,
    }
    write_json(cell.file(folder), content)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counts: Counter[str] = Counter()
    monkeypatch.setattr(work, "run_cell", partial(_made_up, done=counts))
    monkeypatch.setattr(work, "collect_data", lambda config, families, folder: None)
    monkeypatch.setattr(work, "prepare_routing", _made_up_routing)
    monkeypatch.setattr(work, "slowness", lambda: 1.0)
    monkeypatch.setattr(planning, "SEEN_AGAIN", ("rasa", "full"))
    return counts


def _made_up_routing(cell: Cell, folder: Path) -> None:
    place = routing_folder(cell, folder)
    assert place is not None
    place.mkdir(parents=True)  # not twice


def _reproduce(folder: Path, lines: list[str] | None = None, **changes: object) -> Path:
    said: list[str] = [] if lines is None else lines
    arguments = {
        "scale": SCALE,
        "models": ["model-a"],
        "methods": METHODS,
        "on_line": said.append,
        **changes,
    }
    return reproduce(folder, **arguments)  # type: ignore[arg-type]


def _table(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "tables" / f"{name}.csv").read_text().splitlines()))


def test_the_files_say_what_the_cells_hold(tmp_path: Path, done: Counter[str]) -> None:
    lines: list[str] = []
    page = _reproduce(tmp_path, lines)
    assert (
        lines[0].startswith("Budget (tiny): ")
        and "0 kept from before" in lines[0]
        and " min with 1 worker" in lines[0]
    )
    means = {(row["method"], row["measure"]): row for row in _table(tmp_path, "means")}
    assert (
        means["base", "attack_held_out"]["rate"] == "1" and means["base", "attack_held_out"]["seeds"] == "1"
    )
    assert 0.0 < float(means["rasa", "attack_held_out"]["rate"]) < 0.3
    # The unscored goal is left out, "_done" suites are no ability, and the failed training is counted.
    assert means["base", "attack_held_out"]["n"] == str(2 * (SCALE.goals - 1))
    assert means["base", "ability"]["rate"] == "1"
    assert (
        means["steering", "ability"]["seeds"],
        means["steering", "ability"]["failed"],
    ) == ("2", "1")
    # "letter" opens unlike every trained family; "game|world" opens like "story".
    assert means["base", "attack_held_out_new_group"]["n"] == str(SCALE.goals - 1)
    paired = {(row["second"], row["measure"]): row for row in _table(tmp_path, "paired")}
    assert paired["full", "attack_held_out"]["verdict"] == "RASA better"
    assert paired["steering", "wrapped_benign"]["seeds"] == "2"
    attacks = _table(tmp_path, "a_attacks")
    assert {row["suite"] for row in attacks} == {
        "story",
        "game|world",
        "letter",
        "plain",
    }
    assert {row["suite"] for row in _table(tmp_path, "c_costs")} == {
        "story",
        "harmless",
        "sums",
        "wrapped_done",
    }
    assert {row["trained"] for row in _table(tmp_path, "b_transfer")} >= {"all known families"}
    assert {row["axis"] for row in _table(tmp_path, "d_ablations")} >= {
        "rounds",
        "KL direction",
    }
    passes = {(row["method"], row["passes"], row["measure"]): row for row in _table(tmp_path, "e_passes")}
    assert {method for method, _, _ in passes} == {"rasa", "full"}
    once, often = (passes["rasa", number, "attack_held_out"] for number in ("1", str(PASSES)))
    assert float(once["rate"]) > 0 == float(often["rate"]) and once["seeds"] == often["seeds"] == "3"
    assert {(row["second"], row["verdict"]) for row in _table(tmp_path, "e_passes_paired")} >= {
        ("full", "RASA better")
    }
    text = page.read_text()
    assert "<script" not in text and "://" not in text and "<i>goal" not in text
    assert text.count("<svg") >= 2 and "Full fine-tuning" in text
    assert text.index("What was found") < text.index("Every method") < text.index("How it was measured")
    markdown = (tmp_path / "results.md").read_text()
    assert "| game/world " in markdown and "Of a method's trials" in markdown
    assert "- Wins: clearly fewer attacks succeed than with 1 of 2 other methods" in markdown
    again = next(
        line for line in markdown.splitlines() if line.startswith(f"- Every pair seen {PASSES} times")
    )
    assert "0% of held-out attacks succeed, clearly fewer than with Full fine-tuning" in again
    assert f"| RASA, {PASSES} passes |" in markdown and "| RASA, 1 pass |" in markdown


def test_tuning_takes_the_better_trial_and_writes_down_all_of_them(
    tmp_path: Path, done: Counter[str]
) -> None:
    _reproduce(tmp_path)
    rows = [row for row in _table(tmp_path, "tuning") if row["method"] == "full"]
    assert [row["is_chosen"] for row in rows] == ["False", "True"]
    chosen = json.loads((tmp_path / "chosen.json").read_text())["model-a"]
    assert chosen["full"] == pytest.approx(2 * DEFAULTS["full.lr"])
    assert chosen["rasa"] == DEFAULTS["align.expert_lr"]


def test_close_trials_are_trained_more_often_than_clear_ones(tmp_path: Path, done: Counter[str]) -> None:
    lines: list[str] = []
    scale = replace(SCALE, factors=(1.0, 2.0, 10.0), transfer_seeds=0, ablation_seeds=0)
    _reproduce(tmp_path, lines, scale=scale)
    trainings = {
        method: [int(row["trainings"]) for row in _table(tmp_path, "tuning") if row["method"] == method]
        for method in METHODS
    }
    assert trainings["rasa"] == [6, 6, 6], "equal ones"
    assert trainings["full"] in ([3, 3, 1], [6, 6, 1]), "the third refuses everything"
    # The first budget was said before the looks were known; the second says what there is.
    _reproduce(tmp_path, lines, scale=scale)
    files = len(list((tmp_path / "cells").iterdir()))
    first, second = (line for line in lines if line.startswith("Budget"))
    assert ": about " in first
    assert f": {files} cells" in second and f"{files} kept" in second


def test_what_trials_and_variants_share_is_made_once(tmp_path: Path, done: Counter[str]) -> None:
    config = with_settings(Config(), {"align.rounds": 1})
    scale = replace(SCALE, transfer_seeds=0, ablation_seeds=0)
    methods = ("rasa", "rasa_replay", "random_experts", "full")
    _reproduce(tmp_path, scale=scale, config=config, methods=methods)
    # Each of the trials' trainings has one, for both values and three methods, and so has each seed, for each
    # number of passes.
    trained = sum(map(len, LOOKS))
    assert len(list((tmp_path / "routing").iterdir())) == trained + scale.seeds + scale.pass_seeds


def test_a_second_call_does_nothing_again_and_a_lost_cell_is_done_again(
    tmp_path: Path, done: Counter[str]
) -> None:
    page = _reproduce(tmp_path)
    text, before = page.read_text(), sum(done.values())
    lines: list[str] = []
    assert _reproduce(tmp_path, lines).read_text() == text and sum(done.values()) == before
    files = sorted((tmp_path / "cells").iterdir())
    assert f"{len(files)} cells" in lines[0] and f"{len(files)} kept" in lines[0]
    files[0].unlink()
    assert _reproduce(tmp_path).read_text() == text and sum(done.values()) == before + 1
    files[0].write_text("{")
    with pytest.raises(RunError, match="delete it"):
        _reproduce(tmp_path)


def test_what_is_killed_goes_on_from_its_finished_cells(
    tmp_path: Path, done: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(cell: Cell, folder: Path) -> None:
        if sum(done.values()) == 5:
            raise KeyboardInterrupt
        _made_up(cell, folder, done=done)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(work, "run_cell", killed)
        _reproduce(tmp_path)
    _reproduce(tmp_path)
    assert sum(done.values()) == len(list((tmp_path / "cells").iterdir()))


def test_a_foreign_directory_and_an_unknown_method_are_refused(tmp_path: Path, done: Counter[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        _reproduce(tmp_path)
    with pytest.raises(ConfigError, match="'lorra'"):
        _reproduce(tmp_path / "new", methods=["lorra"])
    assert not done


def test_progress_counts_tasks() -> None:
    seen: list[tuple[str, int, int]] = []
    with Pool(1, progress=lambda *step: seen.append(step)) as pool:
        pool.do_all([lambda: None] * 2, label="cells")
    assert seen == [("cells", 0, 2), ("cells", 1, 2), ("cells", 2, 2)]


def test_workers_work_and_pass_on_errors(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    with Pool(2) as pool:
        pool.do_all([partial(file.write_text, "x") for file in files], label="")
        assert all(file.exists() for file in files)
        with pytest.raises(FileNotFoundError):
            pool.do_all([partial((tmp_path / "no" / "x").write_text, "x")], label="")


def test_workers_stay_for_the_next_step(tmp_path: Path) -> None:
    numbers = []
    with Pool(1) as one, Pool(2) as two:
        for step in ("first", "second"):
            one.do_all([partial(_note_process, tmp_path / f"here {step}")], label="")
            files = [tmp_path / f"{step} {n}" for n in range(8)]
            two.do_all([partial(_note_process, file) for file in files], label="", groups=["a", "b"] * 4)
            numbers.append({file.read_text() for file in files})
    assert {(tmp_path / f"here {step}").read_text() for step in ("first", "second")} == {str(os.getpid())}
    assert len(numbers[0] | numbers[1]) == 2 and str(os.getpid()) not in numbers[0] | numbers[1]


@pytest.mark.parametrize(
    ("own", "known", "expected"),
    [
        (set(), set(), 0),
        (set(), {"a"}, 1),  # leaves what another worker has read to it,
        ({"b"}, {"a", "b"}, 1),  # goes on with what it has read,
        ({"c"}, {"a", "b", "c"}, 0),  # and does not stand idle
    ],
)
def test_a_worker_goes_on_with_what_it_knows(own: set[str], known: set[str], expected: int) -> None:
    assert next_task({0: "a", 1: "b", 2: "a", 3: "b"}, own=own, known=known) == expected


def _note_process(file: Path) -> None:
    file.write_text(str(os.getpid()))


def test_the_budget_grows_with_the_scale() -> None:
    from rasa_moe.reproduce.budget import estimated_seconds
    from rasa_moe.reproduce.plan import unique
    from rasa_moe.reproduce.protocol import QUICK

    totals = []
    for scale in (QUICK, FULL):
        plan = Plan(scale, ("testbed/olmoe", "testbed/qwen3"), METHODS, Config())
        chosen = {(m, k.name): setting_of(Config(), k.tuned) for m in plan.models for k in plan.method_list()}
        cells = unique([*plan.before_tuning(), *plan.after_tuning(chosen)])
        totals.append(estimated_seconds(cells, workers=2, slowness=1.0))
    assert 0 < totals[0] < totals[1] / 5
    assert estimated_seconds(cells, workers=1, slowness=3.0) == pytest.approx(6 * totals[1])

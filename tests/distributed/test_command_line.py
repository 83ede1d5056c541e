"""`torchrun -m rasa_moe` on a run directory: one process writes and speaks, and refusals are sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from distributed.test_same_numbers import TOLERANCE, torchrun
from rasa_moe.cli.app import app
from rasa_moe.config import load_config
from rasa_moe.distributed import World
from rasa_moe.errors import ConfigError, ModelError
from rasa_moe.moe import load_model
from rasa_moe.run import run_stages
from rasa_moe.rundir import RunDirectory
from rasa_moe.session import Session
from rasa_moe.testbed import model_path

pytestmark = pytest.mark.slow

SETTINGS = (
    "collect.goals_per_family=4",
    "collect.retain_rows=16",
    "align.rounds=1",
    "align.batch_size=3",
    "align.attention_rank=null",  # at the default rate its first steps follow rounding: test_same_numbers
    "compare=",
    "detect.bootstrap=20",
    "evaluate.goals_per_suite=1",
    "distributed.sharding=fsdp",
    "threads=1",
)
STAGES = ("collect", "route", "detect", "align", "evaluate", "audit")


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that one process did; the report is not in question here."""
    path = tmp_path_factory.mktemp("runs") / "one"
    directory = RunDirectory.start(path, load_config(None, SETTINGS))
    for stage in STAGES:
        run_stages(Session(directory), only=stage)
    return path


@pytest.fixture(scope="module")
def by_two(by_one: Path) -> Path:
    """The same run under torchrun, each process with a share of the model."""
    path = by_one.parent / "two"
    finished = torchrun("-m", "rasa_moe", "run", by_one / "config.yaml", "--out", path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    for stage in STAGES:
        assert finished.stderr.count(f"{stage}: done") == 1
    return path


def _losses(path: Path) -> list[float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_files_are_those_of_one_process(by_one: Path, by_two: Path) -> None:
    one, two = (RunDirectory.open(path).hashes() for path in (by_one, by_two))
    assert two.keys() - one.keys() == {"report.html"} and not one.keys() - two.keys()
    different = {name for name in one if one[name] != two[name]}
    weights = {
        f"{folder}/{file}"
        for folder in ("routing", "patch")
        for file in ("patch.safetensors", "manifest.json")
    }
    assert different <= {*weights, "routing.jsonl", "training.jsonl"}
    losses = [_losses(path / "training.jsonl") for path in (by_one, by_two)]
    assert losses[1] == pytest.approx(losses[0], abs=TOLERANCE) and len(losses[0]) > 2


def test_the_patch_is_that_of_one_process(by_one: Path, by_two: Path) -> None:
    before, one, two = (
        load_file(path / "patch" / file)
        for path, file in (
            (by_one, "base_rows.safetensors"),
            (by_one, "patch.safetensors"),
            (by_two, "patch.safetensors"),
        )
    )
    assert one.keys() == two.keys()
    # AdamW divides by the gradient's size, so where a gradient is nearly 0 its rounding is stepped as well.
    for name, tensor in one.items():
        assert float((two[name] - tensor).norm() / (tensor - before[name]).norm()) < 1e-4, name


def test_one_process_keeps_what_two_have_done(by_two: Path) -> None:
    told: list[str] = []
    for stage in STAGES:
        run_stages(Session(RunDirectory.open(by_two)), only=stage, on_event=lambda e: told.append(e.state))
    assert told == ["kept"] * len(STAGES)


def test_the_export_has_the_layout_of_the_original(by_two: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    result = CliRunner().invoke(app, ["export", str(by_two), str(exported)])
    assert result.exit_code == 0, result.output
    original, repaired = (
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (model_path("olmoe"), exported)
    )
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (original, repaired)]
    assert shapes[0] == shapes[1]
    moved = [name for name in original if not torch.equal(original[name], repaired[name])]
    assert 0 < len(moved) < len(original) / 2


def test_verbs_of_one_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["doctor", "testbed/olmoe"])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("'doctor' works in one process; start it without torchrun.")


def test_experts_that_processes_cannot_share_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"^The experts of 'testbed/olmoe' .* 3 processes by ep; set .* fsdp"
    ):
        load_model("testbed/olmoe", shards=3, parallel="ep")


def test_attention_that_tensor_parallelism_cuts_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = load_config(None, [*SETTINGS, "distributed.sharding=tp", "align.attention_rank=8", "compare="])
    session = Session(RunDirectory.start(tmp_path / "run", settings))
    session.check_repair()  # one process cuts nothing
    monkeypatch.setattr("rasa_moe.distributed.current", lambda: World(rank=0, size=2))
    with pytest.raises(ConfigError, match=r"tp cuts the projections .* align\.attention_rank: null"):
        session.check_repair()


def test_rivals_in_shares_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rasa_moe.distributed.current", lambda: World(rank=0, size=2))
    settings = load_config(None, [*SETTINGS, "compare=full"])
    with pytest.raises(ConfigError, match=r"^distributed.sharding: fsdp trains no rivals .* compare: \[\]"):
        Session(RunDirectory.start(tmp_path / "run", settings)).check()


@pytest.mark.parametrize(
    "setting",
    [
        "data.judge=llm-harmbench:http://localhost:1/v1?model=m",
        "engine.generation={url: 'http://localhost:1/v1', model: m}",
    ],
)
def test_servers_are_asked_by_one_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str
) -> None:
    session = Session(RunDirectory.start(tmp_path / "run", load_config(None, [setting, "compare="])))
    assert session.judge is not None and (session.engine("generation") is None) is ("judge" in setting)
    monkeypatch.setattr("rasa_moe.distributed.current", lambda: World(rank=0, size=2))
    again = Session(session.directory)
    with pytest.raises(ConfigError, match=r"names a server, which one process asks; .* without torchrun"):
        _ = again.judge, again.engine("generation")

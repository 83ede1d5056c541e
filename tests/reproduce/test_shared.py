"""What cells share: one consistent routing for all that differ in the repair alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rasa_moe.align import stage
from rasa_moe.config import Config
from rasa_moe.errors import RunError, TrainingError
from rasa_moe.moe import ExpertPatch, discover
from rasa_moe.reproduce import running, shared
from rasa_moe.reproduce.cells import Cell
from rasa_moe.reproduce.protocol import with_settings
from rasa_moe.reproduce.shared import make_routing, prepare_routing, routing_folder
from unit.tiny import tiny_model, tiny_pairs, tiny_retain, tiny_tokenizer

CONFIG = with_settings(
    Config(), {"align.rounds": 1, "align.batch_size": 2, "detect.budget": 3, "detect.bootstrap": 1}
)


def cell(method: str = "rasa", families: tuple[str, ...] = ("story",), **settings: object) -> Cell:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return Cell(method, with_settings(CONFIG, named), "test", 4, families=families)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    loaded = model, tiny_tokenizer(), discover(model)
    rows = tiny_pairs(), tiny_retain()
    for room in (running, shared):
        monkeypatch.setattr(room, "loaded", lambda name: loaded)
        monkeypatch.setattr(room, "training_data", lambda cell, folder: rows)


@pytest.mark.parametrize(
    ("other", "is_shared"),
    [
        (cell(align__expert_lr=1e-4), True),
        (cell("rasa_replay", align__fixed_routing="replay"), True),
        (cell("random_experts", detect__budget=5), True),
        (cell("attention_only"), True),
        (cell(align__router_lr=1e-4), False),
        (cell(seed=1), False),
        (cell(families=("story", "letter")), False),
        (cell(collect__mutations=0), False),
    ],
)
def test_cells_that_differ_in_the_repair_alone_share_a_routing(
    tmp_path: Path, other: Cell, is_shared: bool
) -> None:
    places = [routing_folder(one, tmp_path) for one in (cell(), other)]
    assert None not in places and (places[0] == places[1]) is is_shared


def test_other_methods_and_the_other_order_take_none(tmp_path: Path) -> None:
    for one in (cell("base"), cell("full"), cell("lora"), cell(align__order="experts_first")):
        assert routing_folder(one, tmp_path) is None and make_routing(one, tmp_path) is None


@pytest.mark.parametrize("method", ["rasa", "random_experts", "attention_only"])
def test_a_shared_routing_is_trained_once_and_gives_the_cell_that_trains_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    alone, _ = running._tuned(cell(method), tmp_path / "alone")
    prepare_routing(cell(align__expert_lr=1e-4), tmp_path / "shared")
    monkeypatch.setattr(stage, "phases_of", _only_repair)
    tensors, _ = running._tuned(cell(method), tmp_path / "shared")
    assert tensors.keys() == alone.keys() and all(torch.equal(alone[name], tensors[name]) for name in alone)
    (place,) = (tmp_path / "shared" / "routing").iterdir()
    assert any(torch.equal(tensor, tensors[name]) for name, tensor in ExpertPatch.load(place).after.items())


def test_a_damaged_routing_is_named_and_kept(tmp_path: Path) -> None:
    prepare_routing(cell(), tmp_path)
    (place,) = (tmp_path / "routing").iterdir()
    (place / "patch.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=f"{place.name} cannot be read; delete it"):
        make_routing(cell(), tmp_path)


def test_routers_that_blow_up_are_left_to_the_cells_to_tell(tmp_path: Path) -> None:
    bad = cell(align__router_lr=1e30)
    prepare_routing(bad, tmp_path)
    assert not (tmp_path / "routing").exists()
    with pytest.raises(TrainingError):
        make_routing(bad, tmp_path)


def _only_repair(config: object, *kinds: str) -> list[stage.Phase]:
    assert "router" not in kinds, "the routing was trained again"
    return [stage.Phase("repair", 0, 0)]

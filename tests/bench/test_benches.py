"""Every bench runs at its tiny size, and its baselines compute the same as what they are compared with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rasa_moe.align.consistency import RoutingConsistency
from rasa_moe.bench import routers, routing
from rasa_moe.bench.contenders import CONTENDERS, Task, chosen_slices, learned_half
from rasa_moe.bench.figures import Figure, Result, Spread, interleaved, ratio
from rasa_moe.bench.floor import _TENSORS, floor_rows
from rasa_moe.bench.growth import slope
from rasa_moe.bench.models import SIZES, Dimensions, olmoe, token_ids
from rasa_moe.bench.run import BENCHES, run_benches, write_results
from rasa_moe.config import AlignConfig
from rasa_moe.errors import ConfigError
from rasa_moe.moe import discover

TINY = SIZES["tiny"]


@pytest.mark.parametrize("name", [name for name in BENCHES if name not in ("repair", "startup")])
def test_a_bench_runs_tiny_and_writes_both_files(name: str, tmp_path: Path) -> None:
    results = run_benches([name], size="tiny")
    write_results(tmp_path, results, size="tiny")
    (written,) = json.loads((tmp_path / "bench.json").read_text())["benches"]
    assert written["name"] == name and written["figures"]
    table = (tmp_path / "bench.md").read_text()
    for figure in results[0].figures:
        assert figure.value.lowest <= figure.value.median <= figure.value.highest
        assert f"| {figure.name} |" in table


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_takes_a_step(name: str) -> None:
    assert len(CONTENDERS[name](Task(name, TINY, rows=2, length=8, steps=1))) == 2


def test_the_floor_has_the_gradients_of_the_slices() -> None:
    task = Task("slices", TINY, rows=2, length=8, steps=1)
    model, ids = olmoe(TINY), token_ids(TINY, rows=2, length=8)
    with chosen_slices(task, model) as slices:
        expected = learned_half(model, ids)
        expected.backward()
    rows = floor_rows(model, len(task.chosen))
    model.set_experts_implementation("rasa_moe_floor")
    loss = learned_half(model, ids)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    of_slices = {name.removesuffix("[selected]"): row.grad for name, row in slices.named_parameters()}
    names = [f"{layer.experts_name}.{name}" for layer in discover(model).layers for name in _TENSORS]
    for name, row in zip(names, rows, strict=True):
        assert float(row.grad.abs().max()) > 0
        torch.testing.assert_close(row.grad, of_slices[name])


def test_the_loop_over_tokens_counts_what_detect_counts() -> None:
    dimensions = Dimensions(hidden=32, width=8, heads=2, vocabulary=64, experts=8, top_k=2)
    model, ids = olmoe(dimensions), token_ids(dimensions, rows=6, length=11)
    moe = discover(model)
    with torch.inference_mode():
        batched = routing.rates_batched(model, moe, ids)
        looped = routing.rates_by_loop(routing.chosen_one_by_one(model, moe, ids), dimensions)
        scattered = routing.rates_by_scatter(routing.chosen_experts(model, moe, ids), dimensions)
    torch.testing.assert_close(batched, looped)
    torch.testing.assert_close(batched, scattered)
    assert float(batched.std()) > 0


def test_both_forms_of_the_router_step_have_one_loss() -> None:
    model, batch = olmoe(TINY), routers.pairs_batch(TINY, pairs=3, length=12)
    moe = discover(model)
    config = AlignConfig(router_retain_weight=0.0)
    once = routers.one_loss(RoutingConsistency(model, moe, [batch], config=config), batch)
    twice = routers.two_forwards(model, moe, batch)
    assert float(once.detach()) > 0
    torch.testing.assert_close(once, twice)


def test_rounds_alternate_and_ratios_are_paired() -> None:
    order: list[str] = []
    seconds = interleaved({name: (lambda name=name: order.append(name)) for name in "ab"}, repeats=2)
    assert "".join(order) == "ab" + "ab" + "ba"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert ratio([1.0, 9.0, 4.0], [2.0, 3.0, 4.0]) == Spread(median=1.0, lowest=0.5, highest=3.0)


@pytest.mark.parametrize(
    ("median", "at_least", "is_met"), [(1.0, False, True), (1.1, False, False), (1.1, True, True)]
)
def test_a_target_is_met_or_missed(median: float, at_least: bool, is_met: bool) -> None:
    value = Spread(median, median, median)
    figure = Figure(bench="b", name="n", value=value, unit="x", target=1.0, at_least=at_least)
    assert figure.is_met is is_met and figure.to_json()["is_met"] is is_met
    assert Result(name="b", conditions="", figures=(figure,)).to_json()["figures"][0]["target"] == 1.0


def test_the_slope_is_the_power() -> None:
    assert slope({2: 12.0, 4: 48.0, 8: 192.0}) == pytest.approx(2.0)


def test_an_unknown_bench_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="choose from repair"):
        run_benches(["nothing"], size="tiny")

"""What trainings share is what each would have read by itself, and nothing of other rows or settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rasa_moe.align import BaseReadings, rasa, readings
from rasa_moe.align.rivals import RIVALS
from rasa_moe.config import AlignConfig, Config, DetectConfig
from rasa_moe.moe import discover
from unit.tiny import tiny_model, tiny_pairs, tiny_retain, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def config_of(**align: Any) -> Config:
    settings = {"rounds": 1, "batch_size": 4, "retain_per_pair": 1, "expert_lr": 1e-3, **align}
    return Config(
        seed=1, align=AlignConfig(**settings), detect=DetectConfig(budget=2, bootstrap=1), compare=()
    )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is really read, by kind."""
    counts: Counter[str] = Counter()
    read = readings.BaseReadings.read

    def counting(self: BaseReadings, kind: str, make: Callable[[], Any], **facts: Any) -> Any:
        def made_now() -> Any:
            counts[kind] += 1
            return make()

        return read(self, kind, made_now, **facts)

    monkeypatch.setattr(readings.BaseReadings, "read", counting)
    return counts


def trained(method: str, shared: BaseReadings | None, model: Any, config: Config) -> dict[str, torch.Tensor]:
    data: dict[str, Any] = {"pairs": tiny_pairs(), "retain": tiny_retain(4), "readings": shared}
    if method == "rasa":
        return dict(rasa(model, TOKENIZER, discover(model), config=config, **data).patch.after)
    return RIVALS[method](model, TOKENIZER, discover(model), config=config, **data).tensors


def test_methods_that_share_readings_end_bit_for_bit_as_by_themselves(made: Counter[str]) -> None:
    model, shared = tiny_model(), BaseReadings()
    for method in ("rasa", "random_experts", "full"):
        alone = trained(method, None, model, config_of())
        together = trained(method, shared, model, config_of())
        assert alone.keys() == together.keys()
        for name, tensor in alone.items():
            assert torch.equal(tensor, together[name]), name
    # Three by themselves, one for all of them; full fine-tuning reads no more than its batches.
    assert made == {"batches": 4, "directions": 3, "final states": 3, "detection": 3}


@pytest.mark.parametrize("batch_tokens", [8192, 64])
def test_recorded_routing_is_shared_too(made: Counter[str], batch_tokens: int) -> None:
    model, shared = tiny_model(), BaseReadings()
    for rate in (1e-3, 2e-3):
        config = config_of(fixed_routing="replay", expert_lr=rate, batch_tokens=batch_tokens)
        alone, together = trained("rasa", None, model, config), trained("rasa", shared, model, config)
        for name, tensor in alone.items():
            assert torch.equal(tensor, together[name]), name
    # Two by themselves, one for both.
    assert made["routing"] == 3


@pytest.mark.parametrize(
    ("change", "read_again"),
    [
        ({"expert_lr": 2e-3}, set()),
        ({"recovery_depth": 0.5}, {"batches", "final states"}),
        # Routers learned in other passes differ in their last digits.
        ({"batch_tokens": 64}, {"directions", "final states", "detection"}),
        ({"both_routings": False}, {"detection"}),
        ({"fixed_routing": "replay"}, {"routing"}),
        ({"router_lr": 1e-4}, {"detection"}),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_only_what_other_settings_decide_is_read_again(
    made: Counter[str], change: dict[str, Any], read_again: set[str]
) -> None:
    model, shared = tiny_model(), BaseReadings(most=2)
    trained("rasa", shared, model, config_of())
    before = made.copy()
    changed = trained("rasa", shared, model, config_of(**change))
    assert set(made - before) == read_again
    for name, tensor in trained("rasa", None, model, config_of(**change)).items():
        assert torch.equal(tensor, changed[name]), name


def test_the_reading_unused_for_longest_makes_room() -> None:
    shared, read = BaseReadings(most=2), []

    def ask(number: int) -> int:
        def make() -> int:
            read.append(number)
            return number

        return shared.read("number", make, pairs=(), retain=(), facts=number)

    assert [ask(number) for number in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert read == [1, 2, 3, 2]


def test_other_rows_are_other_readings() -> None:
    shared, read = BaseReadings(most=3), []
    for pairs, retain in (
        (tiny_pairs(), tiny_retain(4)),
        (tiny_pairs(2), tiny_retain(4)),
        (tiny_pairs(), []),
    ):
        shared.read("rows", lambda: read.append(None), pairs=pairs, retain=retain, facts=0)
    assert len(read) == 3

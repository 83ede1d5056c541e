"""Learning rates that nobody gave follow the model's width."""

from __future__ import annotations

import itertools

import pytest

from rasa_moe.config import Config, learning_rate, setting
from rasa_moe.config.rates import ATTENTION, EXPERTS_FIRST, LOW_RANK, NARROW, RATES, WIDE


def test_a_rate_that_is_given_is_used_at_any_width() -> None:
    assert learning_rate("full.lr", 0.5, width=8) == learning_rate("full.lr", 0.5, width=8192) == 0.5


@pytest.mark.parametrize("key", RATES)
def test_a_rate_falls_with_the_width_between_the_known_points_and_stays_beyond(key: str) -> None:
    widths = (1, NARROW, 256, 512, 1024, WIDE, 7168)
    rates = [learning_rate(key, None, width=width) for width in widths]
    assert (rates[0], rates[1]) == (RATES[key][0],) * 2
    assert (rates[-2], rates[-1]) == (RATES[key][1],) * 2
    middle = rates[1:-1]
    assert all(wider < narrower for narrower, wider in itertools.pairwise(middle))
    # A straight line in logarithms: equal steps of the width, equal factors.
    factors = [wider / narrower for narrower, wider in itertools.pairwise(middle)]
    assert factors == pytest.approx([factors[0]] * len(factors), rel=0.02)


def test_every_rate_of_the_configuration_is_known_and_open_by_default() -> None:
    tree = Config().model_dump()

    def keys(section: dict[str, object], prefix: str = "") -> list[str]:
        found: list[str] = []
        for name, value in section.items():
            if isinstance(value, dict):
                found += keys(value, f"{prefix}{name}.")
            elif name == "lr" or name.endswith("_lr"):
                found.append(f"{prefix}{name}")
        return found

    known = sorted(set(RATES) - {LOW_RANK, ATTENTION, EXPERTS_FIRST})
    assert sorted(keys(tree)) == known
    assert all(setting(Config(), key) is None for key in known)

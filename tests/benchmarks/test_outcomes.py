"""Rates and paired differences are those of the statistics room, question by question."""

from __future__ import annotations

import pytest
from scipy import stats

from rasa_moe.benchmarks.outcomes import Outcome, tabulate


def outcomes(values: str, *, task: str = "t", unparsed: int = 0) -> list[Outcome]:
    return [
        Outcome(
            task=task, metric="correct", item=f"q{place}", value={"1": True, "0": False, "?": None}[value],
            is_parsed=place >= unparsed,
        )
        for place, value in enumerate(values)
    ]  # fmt: skip


def test_models_are_compared_on_the_same_questions() -> None:
    base, tuned = outcomes("0011110010", unparsed=2), outcomes("11111100?0")
    found = tabulate({"base": base, "rasa": tuned[::-1]})
    first, second = found.rows
    assert (first["k"], first["n"], first["unparsed"], first["unscored"]) == (5, 10, 2, 0)
    assert (second["k"], second["n"], second["unscored"]) == (6, 9, 1)
    (paired,) = found.paired
    assert (paired["n"], paired["gained"], paired["lost"]) == (9, 2, 0)
    assert paired["difference"] == pytest.approx(2 / 9)
    assert paired["ci_low"] < paired["difference"] < paired["ci_high"]
    assert paired["p_value"] == pytest.approx(stats.binomtest(2, 2).pvalue)


def test_p_values_are_corrected_over_all_benchmarks() -> None:
    base = outcomes("0" * 12, task="a") + outcomes("0" * 12, task="b")
    tuned = outcomes("1" * 12, task="a") + outcomes("1" + "0" * 11, task="b")
    found = tabulate({"base": base, "rasa": tuned})
    first, second = found.paired
    assert first["p_value_adjusted"] == pytest.approx(2 * first["p_value"])
    assert second["p_value_adjusted"] == pytest.approx(1.0)


def test_nothing_scored_has_no_rate_and_other_questions_are_refused() -> None:
    found = tabulate({"base": outcomes("??"), "rasa": outcomes("11")})
    assert found.rows[0]["rate"] is None and found.paired[0]["difference"] is None
    with pytest.raises(ValueError, match="not asked the same"):
        tabulate({"base": outcomes("11"), "rasa": outcomes("111")})

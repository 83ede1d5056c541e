"""Judges are found by name, also those of other packages; a wrong name is answered with the nearest."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from rasa_moe.data.rows import PromptRow
from rasa_moe.errors import ConfigError
from rasa_moe.judges import Verdict, get_judge, judge_names, registry
from rasa_moe.judges.exact import ExactJudge
from rasa_moe.judges.rules import RuleJudge


class EverythingIsFine:
    name = "fine"

    def judge(self, row: PromptRow, answer: str) -> Verdict:
        return Verdict(harmful=False, refusal="none", correct=None)


class NotAJudge:
    name = "broken"


class NeedsAKey:
    def __init__(self, key: str) -> None:
        self.key = key


@pytest.fixture
def announce(monkeypatch):
    """Pretend that an installed package announces judges of this module."""

    def install(**judges: str) -> None:
        points = [
            EntryPoint(name=name, value=f"{__name__}:{value}", group=registry.ENTRY_POINT_GROUP)
            for name, value in judges.items()
        ]
        monkeypatch.setattr(
            registry, "entry_points", lambda *, group: points if group == "rasa_moe.judges" else []
        )
        # pytest imports test files in a way of its own, so hand the classes over by name
        monkeypatch.setattr(EntryPoint, "load", lambda point: globals()[point.value.split(":")[1]])

    return install


def test_built_in_judges_are_found():
    assert isinstance(get_judge("exact"), ExactJudge)
    assert isinstance(get_judge("rules"), RuleJudge)
    assert {"exact", "rules"} <= set(judge_names())


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"no judge 'rule'; did you mean 'rules'\? choose one of exact, rules"
    ):
        get_judge("rule")
    with pytest.raises(ConfigError, match="no judge 'zzz'; choose one of"):
        get_judge("zzz")


def test_an_installed_package_adds_a_judge(announce):
    announce(fine="EverythingIsFine")
    assert isinstance(get_judge("fine"), EverythingIsFine)
    assert judge_names() == ["exact", "fine", "rules"]


def test_a_package_cannot_replace_a_built_in_judge(announce):
    announce(rules="EverythingIsFine")
    assert isinstance(get_judge("rules"), RuleJudge)


@pytest.mark.parametrize(
    ("value", "message"),
    [("NotAJudge", r"needs a name and a judge\(row, answer\)"), ("NeedsAKey", "cannot be loaded")],
)
def test_a_broken_judge_is_named(announce, value, message):
    announce(mine=value)
    with pytest.raises(ConfigError, match=f"judge 'mine'.*{message}"):
        get_judge("mine")

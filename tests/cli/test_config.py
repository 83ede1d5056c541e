"""Configuration: every mistake at once, nearest names, exact round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from rasa_moe.config import Config, config_text, differences, load_config
from rasa_moe.errors import ConfigError


def _mistakes(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    file = tmp_path / "rasa.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value).splitlines()


def _round_trip(tmp_path: Path, config: Config) -> Config:
    file = tmp_path / "copy.yaml"
    file.write_text(config_text(config, title="a title: with a colon"))
    return load_config(file)


def test_the_defaults_survive_a_round_trip(tmp_path: Path) -> None:
    assert _round_trip(tmp_path, Config()) == Config() == load_config()


@pytest.mark.parametrize(
    "override",
    [
        "align.expert_lr=1e-5",
        "align.expert_lr=1e-300",
        "detect.budget=1",
        "detect.budget=1.0",
        "detect.budget=128",
        "detect.budget=1e-1",
        "compare=full, lora",
        "compare=",
        "compare=[lora]",
        "collect.families=[a, 'b: c']",
        "model='123'",
        "model='it''s # a name: [x]'",
        "model='caf\u00e9 \u6f22 " + "x" * 300 + "'",
        "revision='12e4567'",
        "revision='0123'",
        "align.gradient_checkpointing=true",
        "threads=2",
    ],
)
def test_every_kind_of_value_survives_a_round_trip(tmp_path: Path, override: str) -> None:
    config = load_config(None, [override])
    assert list(differences(Config(), config)) == [override.split("=")[0]]
    assert not differences(config, _round_trip(tmp_path, config))


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = """
allign: {rounds: 2}
align: {rounds: three, expert_lrr: 1e-4, kl: forwards, max_grad_norm: 0}
detect: {budget: many}
data: {source: ""}
rounds: 2
"""
    lines = _mistakes(
        tmp_path, text, "align.rounds", "model.name=x", "evaluate.goal_per_suite=5", "seed=true"
    )
    assert "11 mistakes" in lines[0] or "12 mistakes" in lines[0]
    said = "\n".join(lines)
    for expected in (
        "--set align.rounds: should look like",
        "--set model.name=x: 'model' holds no settings",
        "seed: should be a valid integer, not True",
        "data.source: should not be empty",
        "detect.budget: should be a valid number, not 'many'",
        "align.rounds: should be a valid integer, not 'three'",
        "align.kl: should be 'forward', 'reverse' or 'symmetric' (nearest: 'forward'), not 'forwards'",
        "align.max_grad_norm: should be greater than 0, not 0",
        "align.expert_lrr: unknown key; did you mean align.expert_lr?",
        "allign: unknown key; did you mean align?",
        "evaluate.goal_per_suite: unknown key; did you mean evaluate.goals_per_suite?",
        "rounds: unknown key; did you mean align.rounds?",
    ):
        assert expected in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("align: {rounds: 1}\nalign: {rounds: 2}\n", "line 2: the key 'align' is given twice"),
        ("align: [\n", "line 2"),
        ("- a\n", "should hold 'key: value' lines"),
        ("detect: {threshold: 0.1}\n", "exactly one of budget and threshold"),
        ("detect: {budget: 2.0}\n", "a share should lie between 0 and 1"),
        ("detect: {budget: 0}\n", "at least 1 expert"),
        ("align: {repair_epochs: 0, router_epochs: 0}\n", "nothing would be trained"),
        ("align: 3\n", "align: should hold settings of its own, not 3"),
        ("revision: 12e4567\n", "revision: should be text"),
        ("zzzzqqqq: 1\n", "unknown key; rasa-moe init - lists all keys"),
        ("align: {expert_lr: .inf}\n", "should be a finite number"),
    ],
)
def test_each_mistake_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(_mistakes(tmp_path, text))


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rasa-moe init"):
        load_config(tmp_path / "none.yaml")


def test_an_empty_file_and_empty_sections_mean_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "rasa.yaml"
    file.write_text("align:\n  # rounds: 2\n")
    assert load_config(file) == Config()
    file.write_text("")
    assert load_config(file) == Config()


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rasa.yaml"
    file.write_text("align: {rounds: 2, kl: reverse}\n")
    config = load_config(file, ["align.rounds=5", "align.rounds=6"])
    assert (config.align.rounds, config.align.kl) == (6, "reverse")


def test_every_setting_is_described() -> None:
    def undescribed(model: type[BaseModel]) -> list[str]:
        found = [name for name, field in model.model_fields.items() if not field.description]
        for field in model.model_fields.values():
            if isinstance(field.default, BaseModel):
                found += undescribed(type(field.default))
        return found

    assert undescribed(Config) == []


def test_differences_tell_a_count_from_a_share() -> None:
    one, all_of_them = load_config(None, ["detect.budget=1"]), load_config(None, ["detect.budget=1.0"])
    assert differences(one, all_of_them) == {"detect.budget": (1, 1.0)}


def test_a_method_that_trains_attention_alone_needs_a_rank() -> None:
    assert load_config(None, ["compare=attention_only"]).compare == ("attention_only",)
    with pytest.raises(ConfigError, match="names attention_only, which trains what"):
        load_config(None, ["compare=attention_only", "align.attention_rank=null"])

"""The model card says what the run directory says, with intervals, and nothing of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rasa_moe.errors import RunError
from rasa_moe.export import model_card
from rasa_moe.report import write_report
from report.fake_run import FakeRun, write_fake_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_fake_run(tmp_path / "run", FakeRun(story="repaired"))


def change(run_dir: Path, name: str, **values: object) -> None:
    content = json.loads((run_dir / name).read_text())
    (run_dir / name).write_text(json.dumps({**content, **values}))


def test_base_stands_beside_repaired_with_intervals_and_counts(run_dir: Path) -> None:
    card = model_card(run_dir)
    rows = {
        (row["suite"], row["model"]): row
        for row in json.loads((run_dir / "evaluation.json").read_text())["rows"]
        if row["kind"] == "attack_held_out"
    }
    base, repaired = rows["table", "base"], rows["table", "rasa"]
    line = next(line for line in card.splitlines() if line.startswith("| table |"))
    for row in (base, repaired):
        assert f"{row['rate']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" in line
        assert f"({row['k']} of {row['n']}" in line
    assert line.index(f"{base['rate']:.3f}") < line.index(f"{repaired['rate']:.3f}")


def test_hashes_limits_and_the_way_to_reproduce_it_are_there(run_dir: Path) -> None:
    from rasa_moe.files import sha256_file

    card = model_card(run_dir)
    assert sha256_file(run_dir / "evaluation.json") in card
    assert "rasa-moe run config.yaml" in card
    assert "## Limits" in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    settings = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(settings).keys() == yaml.safe_load((run_dir / "config.yaml").read_text()).keys()


def test_nothing_of_the_machine_is_told(run_dir: Path) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["model"] = "/home/somebody/secret/base-model"
    config["data"] = {"source": "/home/somebody/prompts.jsonl"}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    card = model_card(run_dir)
    assert "/home/somebody" not in card
    assert "base-model" in card
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])


def test_text_from_a_run_cannot_become_markup(run_dir: Path) -> None:
    change(run_dir, "evaluation.json", notes=["<img src=x> | [click](http://x)\n# heading"])
    card = model_card(run_dir)
    assert "<img" not in card.replace("\\<img", "")
    assert "\n# heading" not in card


def test_a_base_on_the_hub_is_named_for_the_hub(run_dir: Path) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["model"] = "allenai/OLMoE-1B-7B-0125-Instruct"
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    front = yaml.safe_load(model_card(run_dir).split("---\n")[1])
    assert front["base_model"] == "allenai/OLMoE-1B-7B-0125-Instruct"


def test_a_run_without_results_of_the_repaired_model_has_no_card(run_dir: Path) -> None:
    content = json.loads((run_dir / "evaluation.json").read_text())
    content["models"] = ["base"]
    content["rows"] = [row for row in content["rows"] if row["model"] == "base"]
    content["means"], content["paired"] = [], []
    (run_dir / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="no results of both"):
        model_card(run_dir)


@pytest.mark.parametrize(
    ("dtype", "sentence"),
    [
        ("auto", "stored in the types of the base model, to which trained values are rounded. All else has"),
        ("float32", "stored in float32, as the run was told; all else is the base model in float32."),
    ],
)
def test_the_type_of_the_checkpoint_is_told(run_dir: Path, dtype: str, sentence: str) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**config, "dtype": dtype}))
    assert sentence in model_card(run_dir)


def test_what_attention_learned_is_said_in_card_and_report_by_the_patch(run_dir: Path) -> None:
    (run_dir / "patch").mkdir(exist_ok=True)
    manifest = run_dir / "patch" / "manifest.json"
    content = json.loads(manifest.read_text()) if manifest.exists() else {}
    for names in (["q.weight", "k.weight"], []):
        manifest.write_text(json.dumps({**content, "attention": names}))
        page = write_report(run_dir).read_text(encoding="utf-8")
        said = "Beside them, 2 projections of attention learned changes of low rank."
        assert (said in model_card(run_dir)) == (said in page) == bool(names)

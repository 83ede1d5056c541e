"""Whatever a user can get wrong ends in exit code 2 and one sentence, with real stages behind it."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import JetMoeConfig, JetMoeForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from models import olmoe
from rasa_moe.cli import main
from rasa_moe.files import move_into_place
from rasa_moe.run import STAGES
from rasa_moe.rundir import RunDirectory
from rasa_moe.testbed.tokens import build_tokenizer

SMALL = (
    "collect.goals_per_family=2",
    "align.rounds=1",
    "compare=",
    "evaluate.goals_per_suite=1",
    "threads=1",
)
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROW = {"id": "a", "goal": "g", "kind": "harmful", "family": "plain", "split": "train", "prompt": "how?"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Return a function that runs a command, which must fail, and gives back its last line."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        shown = capsys.readouterr().err
        assert caught.value.code == 2, shown
        assert "Traceback" not in shown and shown.count("Error: ") == 1
        return shown[shown.index("Error: ") :].strip()

    yield run


def run_with(*settings: str, out: str = "run") -> list[str]:
    """Return the words of a run on the built-in model, small, with some settings changed."""
    return ["run", "--out", out, *(part for value in (*SMALL, *settings) for part in ("--set", value))]


def saved(model: PreTrainedModel, *, template: bool = True) -> str:
    tokenizer = build_tokenizer()
    if not template:
        tokenizer.chat_template = None
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    return "model=model"


def dense() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(build_tokenizer()), **SIZES))


def unsupported() -> PreTrainedModel:
    return JetMoeForCausalLM(
        JetMoeConfig(vocab_size=64, kv_channels=8, num_local_experts=4, num_experts_per_tok=2, **SIZES)
    )


def untrained() -> PreTrainedModel:
    return olmoe(vocab_size=len(build_tokenizer()), max_position_embeddings=512)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (dense, "is dense (type 'llama'); choose a mixture-of-experts model."),
        (unsupported, "'jetmoe' are not supported: it routes attention as well"),
    ],
)
def test_a_model_without_what_is_repaired(refused: Any, make: Any, sentence: str) -> None:
    assert sentence in refused(*run_with(saved(make())))


def test_a_model_without_chat_template(refused: Any) -> None:
    sentence = refused(*run_with(saved(untrained(), template=False)))
    assert sentence == (
        "Error: The tokenizer of 'model' has no chat template; choose an instruction-tuned model."
    )


def test_a_model_that_is_not_there(refused: Any) -> None:
    sentence = refused(*run_with("model=./nothing-here"))
    assert "No model could be read from './nothing-here'" in sentence
    assert "give a model directory or a Hugging Face name" in sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "rows.jsonl has no rows; give a file with at least one"),
        (json.dumps(ROW) + '\n{"id": "b", broken\n', "line 2: broken JSON"),
        (json.dumps(ROW) + "\n\n" + json.dumps({**ROW, "goal": None, "prompt": None}), "line 3: the prompt"),
        (json.dumps(ROW) + '\n{"id": "b", "goal": "h", "prompt": "p h"}\n', "line 2: kind is empty; choose"),
    ],
    ids=["empty", "broken", "null prompt", "no kind"],
)
def test_rows_that_cannot_be_used(refused: Any, text: str, sentence: str) -> None:
    Path("rows.jsonl").write_text(text)
    shown = refused(*run_with("data.source=rows.jsonl"))
    assert "rows.jsonl" in shown and sentence in shown


def test_every_unknown_key_at_once_with_the_nearest_name(refused: Any) -> None:
    Path("mine.yaml").write_text("algin: {rounds: 2}\ndetect: {bugdet: 3}\nseeed: 1\n")
    shown = refused("run", "mine.yaml", "--set", "align.expert_lrr=1")
    assert shown.splitlines()[0].endswith("has 4 mistakes:")
    for wrong, right in (
        ("algin", "align"),
        ("detect.bugdet", "detect.budget"),
        ("seeed", "seed"),
        ("align.expert_lrr", "align.expert_lr"),
    ):
        assert f"{wrong}: unknown key; did you mean {right}?" in shown


def test_no_jailbreak_that_works(refused: Any) -> None:
    shown = refused(*run_with(saved(untrained()), "collect.max_new_tokens=4"))
    assert "No successful jailbreak to learn from: of 12 jailbreaks 0 were answered harmfully" in shown
    assert "give more goals or stronger attacks" in shown
    # What was asked is kept, for whoever wants to know why.
    kept = Path(re.search(r"every answer is in (\S+)\.$", " ".join(shown.split()))[1])
    asked = [json.loads(line) for line in kept.read_text().splitlines()]
    assert sum(one["kind"] == "harmful" and one["family"] != "plain" for one in asked) == 12
    assert all(one["harmful"] is not True for one in asked)


def test_a_loss_that_is_no_number_and_a_directory_of_another_configuration(refused: Any) -> None:
    """What was finished stays, and the directory says which setting differs."""
    command = run_with("align.expert_lr=1e30", "align.batch_size=2")
    for _ in range(2):
        shown = refused(*command)
        assert "The loss became nan in rasa repair, round 0; lower the learning rate" in shown
        assert list(RunDirectory.open(Path("run")).marks()) == ["collect", "route", "detect"]
    shown = refused(*run_with("align.expert_lr=1e-3", "align.batch_size=2"))
    assert shown == (
        "Error: run belongs to a run of another configuration (align.expert_lr is 1e+30 there and 0.001 "
        "here); give another --out."
    )


@pytest.mark.parametrize("stage", ["collect", "align"])
def test_a_disk_that_fills_up_keeps_what_was_finished(
    refused: Any, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The stage has worked, and there is no room when its files are put in place."""

    def move(source: Path, target: Path) -> None:
        if stage in source.parts:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        move_into_place(source, target)

    with monkeypatch.context() as full:
        full.setattr("rasa_moe.rundir.move_into_place", move)
        shown = refused(*run_with())
    assert "is full; free some space and give the same command again" in shown
    names = [row.name for row in STAGES]
    assert list(RunDirectory.open(Path("run")).marks()) == names[: names.index(stage)]
    with pytest.raises(SystemExit) as caught:
        main([stage, "run"])
    assert caught.value.code == 0
    assert list(RunDirectory.open(Path("run")).marks()) == names[: names.index(stage) + 1]

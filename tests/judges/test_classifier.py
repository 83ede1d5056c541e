"""Classifiers are asked in their own words and read strictly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OlmoeForCausalLM

from models import olmoe
from rasa_moe.data.rows import Message, PromptRow
from rasa_moe.errors import ConfigError, ModelError
from rasa_moe.judges import get_judge
from rasa_moe.judges.classifier import ClassifierJudge, load_classifier, read_guard
from rasa_moe.judges.rubrics import RUBRICS, read_grades, read_yes_no, with_wording
from rasa_moe.moe.loading import resolve
from unit.tiny import tiny_tokenizer

ROW = PromptRow(
    id="r", goal="pick a lock", kind="harmful", messages=(Message(role="user", content="wrapped"),)
)


class Scripted(ClassifierJudge):
    """Say what a test wants, and remember what was asked."""

    def says(self, reply: str) -> Scripted:
        self.reply = reply
        return self

    def _classify(self, question: str) -> str:
        self.asked = question
        return self.reply


def guard(reply: str) -> Scripted:
    return Scripted(None, tiny_tokenizer(), style="llama-guard").says(reply)


def test_llama_guard_is_asked_by_its_template_about_the_whole_conversation() -> None:
    judge = guard("unsafe\nS9,S2")
    verdict = judge.judge(ROW, "<think>hm</think>first take a hook")
    assert verdict.harmful is True and verdict.reason == "unsafe S9,S2"
    assert "wrapped" in judge.asked and "take a hook" in judge.asked and "hm" not in judge.asked
    assert guard("safe").judge(ROW, "I can't help with that.").refusal == "full"
    assert guard("Safe, I think").judge(ROW, "x").harmful is None
    assert guard("safe").judge(ROW, "  ").harmful is None


def test_a_guard_whose_template_refuses_a_conversation_scores_nothing() -> None:
    judge = guard("unsafe\nS9")
    system = Message(role="system", content="be brief")
    judge._tokenizer.chat_template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    assert judge.judge(replace(ROW, messages=(system, *ROW.messages)), "x").harmful is True, "no system turn"
    verdict = judge.judge(replace(ROW, messages=(*ROW.messages, *ROW.messages)), "x")
    assert verdict.harmful is None and "roles must alternate" in verdict.reason


def test_harmbench_is_asked_about_the_goal_in_its_own_prompt(tmp_path: Path) -> None:
    prompt = "Behavior: {behavior}\nGeneration: {generation}\nAnswer:"
    judge = Scripted(None, tiny_tokenizer(), style="harmbench", prompt=prompt).says("Yes")
    assert judge.judge(ROW, "take {a} hook").harmful is True
    assert judge.asked == "Behavior: pick a lock\nGeneration: take {a} hook\nAnswer:"
    assert judge.says("no").judge(ROW, "x").harmful is False
    assert judge.says("maybe").judge(ROW, "x").harmful is None
    with pytest.raises(ConfigError, match="needs the prompt printed on its model card"):
        get_judge("harmbench:some/model")
    (tmp_path / "p.txt").write_text("{behavior} only")
    with pytest.raises(ConfigError, match="must hold the places"):
        get_judge(f"harmbench:some/model?prompt={tmp_path / 'p.txt'}")


def test_a_real_model_is_asked_in_memory() -> None:
    tokenizer = tiny_tokenizer()
    model = olmoe(vocab_size=len(tokenizer)).eval()
    judge: Any = ClassifierJudge(model, tokenizer, style="llama-guard")
    first = judge.judge(ROW, "first take a hook")
    assert first == judge.judge(ROW, "first take a hook")
    assert first.harmful is None and "cannot be read" in first.reason


def test_a_classifier_stands_where_it_is_told_to() -> None:
    folder = resolve("testbed/olmoe")
    devices = [
        load_classifier(folder, style="llama-guard", **where)._model.device.type
        for where in ({}, {"device": "meta"})
    ]
    assert devices == ["cpu", "meta"], "by default it takes no memory from the model on a GPU"
    with pytest.raises(ModelError, match="The device 'cuda:99' cannot be used"):
        get_judge(f"llama-guard:{folder}?device=cuda:99")
    with pytest.raises(ConfigError, match="does not know 'devise'"):
        get_judge(f"llama-guard:{folder}?devise=cpu")


def test_a_classifier_that_the_device_has_no_room_for_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_full(model: torch.nn.Module, *where: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(OlmoeForCausalLM, "to", is_full)
    with pytest.raises(ModelError, match="does not fit into the free memory of cpu; name another device"):
        get_judge(f"llama-guard:{resolve('testbed/olmoe')}?device=cpu")


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        get_judge(f"llama-guard:{tmp_path}")
    with pytest.raises(ConfigError, match="needs a model after a colon"):
        get_judge("llama-guard")
    with pytest.raises(ConfigError, match="needs the name of the served model"):
        get_judge("llm-harmbench:http://localhost:1/v1")


@pytest.mark.parametrize("reply", ["unsafe S1 please", "it is unsafe", "", "unsafe\nS1\nsafe"])
def test_guard_replies_of_other_forms_are_unread(reply: str) -> None:
    assert read_guard(reply) is None


def test_rubrics_are_read_strictly(tmp_path: Path) -> None:
    assert read_yes_no(" Yes. ").is_harmful and not read_yes_no("no").is_harmful  # type: ignore[union-attr]
    assert read_yes_no("yes, because") is None
    grades = '{"refused": 0, "convincing": 3, "specific": 3}'
    assert read_grades(grades).is_harmful and read_grades(f"```json\n{grades}\n```")  # type: ignore[union-attr]
    for wrong in ('{"refused": 0}', grades.replace("3", "6"), grades.replace("0", "true"), "[]", "x"):
        assert read_grades(wrong) is None
    path = tmp_path / "p.txt"
    path.write_text("Q {request} A {answer} {{x}}")
    assert with_wording(RUBRICS["harmbench"], path).ask(request="a", answer="{b}") == "Q a A {b} {x}"
    path.write_text("Q {request} {other} {answer}")
    with pytest.raises(ConfigError, match="other braces"):
        with_wording(RUBRICS["harmbench"], path)

"""What holds for every rival: the model comes back bit for bit, and only what a method names has changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models import bits
from rasa_moe.align.rivals import RIVALS, STEERING, Job, in_use
from rasa_moe.align.rivals.affinity_experts import affinity_experts
from rasa_moe.config import load_config
from rasa_moe.errors import ConfigError, ModelError, TrainingError
from rasa_moe.rundir import RunDirectory
from rasa_moe.session import Session

TRAINED = sorted(set(RIVALS) - {"steering"})
EXPERT_TENSORS = ("gate_up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
IN_PLACE = ["full", "full_no_retain", "lora", "router_kl", "rerouting"]
# Overrides that make one epoch long enough to move something, and the key of each method's learning rate.
RATES = {
    "full": "full.lr",
    "full_no_retain": "full.lr",
    "random_experts": "align.expert_lr",
    "attention_only": "align.expert_lr",
    **{
        name: f"rivals.{name}.lr"
        for name in ("lora", "experts_only", "routers_only", "affinity_experts", "router_kl", "rerouting")
    },
}


def _changed(job: Job, name: str) -> tuple[dict[str, torch.Tensor], set[str]]:
    before = bits(job.model)
    tuned = RIVALS[name].train(job)
    after = bits(job.model)
    assert list(after) == list(before)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    moved = {key for key, tensor in tuned.tensors.items() if not torch.equal(tensor, before[key])}
    return tuned.tensors, moved


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe"])
@pytest.mark.parametrize("name", TRAINED)
def test_the_model_is_left_as_it_was_and_something_was_learnt(
    name: str, family: str, make_job: Callable[..., Job]
) -> None:
    job = make_job(f"{RATES[name]}=1e-2", family=family)
    wanted = {key: parameter.requires_grad for key, parameter in job.model.named_parameters()}
    tensors, moved = _changed(job, name)
    assert moved
    assert {key: parameter.requires_grad for key, parameter in job.model.named_parameters()} == wanted
    inside = bits(job.model)
    with in_use(job.moe, tensors) as names:
        assert set(names) == set(tensors)
        now = bits(job.model)
        assert {key for key in now if not torch.equal(now[key], inside[key])} == moved
    assert all(torch.equal(tensor, inside[key]) for key, tensor in bits(job.model).items())


def test_each_method_changes_what_it_says(make_job: Callable[..., Job]) -> None:
    job = make_job(*(f"{key}=1e-2" for key in sorted(set(RATES.values()))))
    layers = job.moe.layers
    experts = {f"{layer.experts_name}.{name}" for layer in layers for name in EXPERT_TENSORS}
    routers = {f"{layer.router_name}.weight" for layer in layers}
    attention = {key for key, _ in job.model.named_parameters() if key.split(".")[-2] in ATTENTION}
    assert _changed(job, "experts_only")[1] == experts
    assert _changed(job, "routers_only")[1] == routers
    assert _changed(job, "lora")[1] == experts | attention
    assert _changed(job, "full")[1] >= experts | routers | attention | {"lm_head.weight"}
    assert experts >= _changed(job, "affinity_experts")[1]
    changed = _changed(job, "random_experts")[1]
    assert experts | routers | attention >= changed and attention <= changed
    assert _changed(job, "attention_only")[1] == routers | attention
    assert set(_changed_steering(job)) == {STEERING}


def _changed_steering(job: Job) -> dict[str, torch.Tensor]:
    before = bits(job.model)
    tensors = RIVALS["steering"].train(job).tensors
    with in_use(job.moe, tensors) as names:
        assert names == []
        assert all(torch.equal(tensor, before[key]) for key, tensor in bits(job.model).items())
    return tensors


def test_rows_of_other_experts_keep_their_bits(make_job: Callable[..., Job]) -> None:
    job = make_job("rivals.affinity_experts.lr=1e-2")
    before = bits(job.model)
    chosen = affinity_experts(job)
    for key, tensor in RIVALS["affinity_experts"].train(job).tensors.items():
        layer = next(layer for layer in job.moe.layers if key.startswith(layer.experts_name))
        rows = {expert.expert for expert in chosen if expert.layer == layer.index}
        moved = {row for row in range(layer.num_experts) if not torch.equal(tensor[row], before[key][row])}
        assert moved <= rows and moved


@pytest.mark.parametrize("name", IN_PLACE)
def test_weights_that_lose_small_steps_are_refused(name: str, make_job: Callable[..., Job]) -> None:
    with pytest.raises(ModelError, match=f"'{name}' trains the weights in place.*bfloat16.*dtype: float32"):
        RIVALS[name].train(make_job(dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["experts_only", "routers_only"])
def test_masters_in_float32_train_a_model_in_bfloat16(name: str, make_job: Callable[..., Job]) -> None:
    job = make_job(f"{RATES[name]}=1e-2", dtype=torch.bfloat16)
    tensors, moved = _changed(job, name)
    assert moved and {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", TRAINED)
def test_a_killed_training_goes_on_to_the_same_weights(
    name: str, make_job: Callable[..., Job], tmp_path
) -> None:
    section = RATES[name].rsplit(".", 1)[0]
    epochs = "align.rounds=2" if section == "align" else f"{section}.epochs=2"
    overrides = (f"{RATES[name]}=1e-3", epochs)
    whole = RIVALS[name].train(make_job(*overrides))
    job = make_job(*overrides)
    steps: list[int] = []

    def killed(label: str, done: int, total: int) -> None:
        steps.append(done)
        if label == name and done > total / 2:
            raise KeyboardInterrupt

    arguments = {"pairs": job.pairs, "retain": job.retain, "config": job.config}
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        RIVALS[name](job.model, job.tokenizer, job.moe, **arguments, checkpoint_path=path, progress=killed)
    resumed = RIVALS[name](job.model, job.tokenizer, job.moe, **arguments, checkpoint_path=path)
    assert resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(resumed.tensors[key], tensor) for key, tensor in whole.tensors.items())
    assert resumed.log == whole.log


@pytest.mark.parametrize("name", ["full", "lora", "experts_only"])
def test_a_training_that_blows_up_leaves_the_base_model(name: str, make_job: Callable[..., Job]) -> None:
    job = make_job(f"{RATES[name]}=1e30")
    before = bits(job.model)
    with pytest.raises(TrainingError, match=f"{name}, round 0"):
        RIVALS[name].train(job)
    assert list(bits(job.model)) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in bits(job.model).items())


def test_without_peft_the_sentence_says_what_to_install(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'rasa-moe\[peft\]'"):
        RIVALS["lora"].train(make_job())
    with pytest.raises(ConfigError, match=r"pip install 'rasa-moe\[peft\]'"):
        Session(RunDirectory.start(tmp_path / "run", load_config(None, ["compare=lora"]))).check()


def test_tensors_of_another_model_are_refused(make_job: Callable[..., Job]) -> None:
    job = make_job()
    with pytest.raises(ModelError, match="another model"), in_use(job.moe, {STEERING: torch.zeros(1, 8)}):
        pass
    with pytest.raises(ModelError, match="another model"), in_use(job.moe, {"nothing": torch.zeros(1)}):
        pass

"""Doctor reads configs and headers only, tells all that is wrong, and fails when nothing can be done."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from invariants.test_loading import saved, tokenizer
from models import FAMILIES
from rasa_moe.cli import main
from rasa_moe.moe import discover
from rasa_moe.moe.budget import Size, Speed, needs, repair_bytes, size_of
from rasa_moe.moe.checkpoint import empty_model
from rasa_moe.moe.examination import _advice


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    shown = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, shown.out, shown.err


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("doctor must not load weights")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


def test_a_good_model_is_told_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    code, out, err = doctor(capsys, str(saved(tmp_path / "model", pad_token="<s>")))
    assert code == 0, err
    for line in (
        "Routed experts: 2 layers x 8 = 16 matched (expected 16)",
        "top 2 of 8, softmax scores, without shared experts, no dense layers",
        "69 tensors",
        "as F32, complete",
        "can be repaired",
        "measured for a moment",
    ):
        assert line in out
    for stage in ("collect", "routers", "detect", "repair", "evaluate", "audit"):
        assert f"\n  {stage}" in out


def test_a_published_size_is_examined_in_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    config = Qwen3MoeConfig(
        num_hidden_layers=48, num_experts=128, num_experts_per_tok=8, head_dim=128, vocab_size=151936
    )
    config.architectures = ["Qwen3MoeForCausalLM"]
    config.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    start = time.process_time()
    code, out, err = doctor(capsys, str(tmp_path))
    assert time.process_time() - start < 6
    assert "48 layers x 128 = 6144 matched (expected 6144)" in out
    assert "30.5 G parameters" in out
    assert "set dtype: bfloat16" in out or "use a larger machine" in out
    assert code == 2
    assert "of the model's tensors are not in the checkpoint" in err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised (gptq)"),
        ({"model_type": "dbrx"}, "'dbrx' are not supported: its experts are one tensor"),
        ({"num_experts": 9}, "have another size in the checkpoint"),
        ({"vocab_size": 20}, "do not belong together"),
    ],
)
def test_what_stands_in_the_way_is_said_and_ends_in_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], sentence: str
) -> None:
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    code, out, err = doctor(capsys, str(folder))
    assert code == 2
    assert sentence in out
    assert "cannot be repaired" in err


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no safetensors files"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 40), "missing or damaged"),
        (lambda folder: (folder / "config.json").write_text("{}"), "No model can be built"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}"),
            "refuses",
        ),
    ],
)
def test_damage_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, sentence: str
) -> None:
    folder = saved(tmp_path / "model")
    damage(folder)  # type: ignore[operator]
    code, out, err = doctor(capsys, str(folder))
    assert code == 2
    assert sentence in out
    assert "cannot be repaired" in err


SIZE = Size(
    num_parameters=1_000_000,
    num_routed=800_000,
    num_thin=40_000,
    num_attention=60_000,
    num_thin_attention=500,
    num_router=1_000,
    num_active=300_000,
    itemsize=2,
    activation_bytes=100,
    checkpointed_bytes=30,
    cache_bytes=10,
    logit_bytes=1000,
)


def test_estimates_follow_from_the_sizes() -> None:
    speed = Speed(flops=1e9, bandwidth=1e9, free_bytes=None)
    stages = {need.stage: need for need in needs(SIZE, speed)}
    # 32 sequences of 384 tokens; 2,048 tokens in one pass of a training step
    assert stages["collect"].peak_bytes == 2_000_000 + 12_288 * 10
    assert stages["detect"].peak_bytes == 2_000_000 + 12_288 * 30
    attention = 500 * 8 * 16
    assert stages["repair"].peak_bytes == 2_000_000 + 100_000 * 16 + attention + 2_048 * (100 + 3 * 1000)
    assert stages["routers"].peak_bytes == 2_000_000 + 1_000 * 16 + 2_048 * (100 + 1000)
    assert stages["audit"].peak_bytes == 2_000_000 + (100_000 + 60_000 + 1_000) * 2 + 2 * 12_288 * 10
    # 200 pairs, seven chats each, three epochs, forward and backward, two operations a value
    assert stages["repair"].seconds == pytest.approx(200 * 7 * 3 * 384 * 3 * 2 * 300_000 / 1e9)
    assert stages["detect"].seconds == pytest.approx(4 * 200 * 384 * 2 * 300_000 / 1e9)
    # 800 prompts of 256 tokens; 25 batches of 128 steps, each bound by arithmetic here
    reading, step = 800 * 256 * 6e5 / 1e9, 32 * 6e5 / 1e9
    assert stages["collect"].seconds == pytest.approx(reading + 25 * 128 * step)


def test_what_spares_memory_in_repair_is_told_in_order_until_it_fits() -> None:
    size = replace(SIZE, logit_bytes=0, num_thin_attention=0)
    checkpointed = 2_000_000 + 100_000 * 16 + 2_048 * 30
    assert repair_bytes(size, gradient_checkpointing=True) == checkpointed
    assert repair_bytes(size, gradient_checkpointing=True, base_bits=8) == checkpointed - 800_000
    # An eighth of rank 8, 16 bytes each, and of a copy in two bytes.
    low_rank = checkpointed - 100_000 * 16 + 40_000 // 8 * 8 * 16 + 100_000 * 2
    assert repair_bytes(size, gradient_checkpointing=True, expert_rank=8) == low_rank
    least = checkpointed - 800_000 - 100_000 * 8
    spared = {"gradient_checkpointing": True, "base_bits": 8, "optimizer_on_cpu": True}
    assert repair_bytes(size, **spared) == least
    # Half a byte, and one scale of two bytes for 32 weights.
    kept = replace(size, checkpointed_bytes=1_000)
    assert repair_bytes(kept, **spared) - repair_bytes(kept, **{**spared, "base_bits": 4}) == 350_000
    # Before they are integers, the weights have to be there.
    assert repair_bytes(replace(size, num_parameters=1_100_000), **spared) == 2_200_000 + least - 2_000_000
    few = replace(size, num_routed=8_000, num_parameters=1_000_000, checkpointed_bytes=0)
    assert repair_bytes(few, **spared) == 2_000_000
    gpu = torch.device("cuda")
    told = {
        free: _advice("repair", size, Speed(flops=1.0, bandwidth=1.0, free_bytes=free), gpu)
        for free in (checkpointed, checkpointed - 1, low_rank - 1, 2_100_000, 2_050_000)
    }
    assert told[checkpointed].endswith("with align.gradient_checkpointing: true")
    assert told[checkpointed - 1].endswith("align.gradient_checkpointing: true and align.expert_rank: 8")
    assert told[low_rank - 1].endswith("align.gradient_checkpointing: true and align.base_bits: 8")
    assert told[2_100_000].endswith("and align.base_bits: 8 and align.optimizer_on_cpu: true")
    assert told[2_050_000].endswith("and align.base_bits: 4 and align.optimizer_on_cpu: true")


def test_sizes_are_counted_from_the_model(tmp_path: Path) -> None:
    model = FAMILIES["olmoe"]()
    model.save_pretrained(tmp_path)
    size = size_of(discover(empty_model(tmp_path)), torch.bfloat16)
    routed = 2 * 8 * (2 * 16 * 32 + 32 * 16)
    assert size.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (size.num_routed, size.num_router) == (routed, 2 * 8 * 32)
    assert size.num_thin == 2 * 8 * ((2 * 16 + 32) + (32 + 16))
    attention = model.model.layers[0].self_attn
    assert size.num_attention == 2 * sum(getattr(attention, f"{name}_proj").weight.numel() for name in "qkvo")
    assert size.num_thin_attention == 2 * sum(
        sum(getattr(attention, f"{name}_proj").weight.shape) for name in "qkvo"
    )
    assert size.logit_bytes == 64 * 4
    assert size.num_active == size.num_parameters - 64 * 32 - routed * 6 // 8
    assert size.weight_bytes == 2 * size.num_parameters

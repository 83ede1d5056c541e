"""A model is loaded ready to use, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models import VOCABULARY, bits, olmoe
from rasa_moe.errors import ModelError
from rasa_moe.moe import load_model, loading_notes

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tokenizer(*, template: str | None = TEMPLATE, pad_token: str | None = None) -> PreTrainedTokenizerFast:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    built = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        unk_token="<unk>",
        eos_token="</s>",
        pad_token=pad_token,
        padding_side="right",
    )
    built.chat_template = template
    return built


def saved(directory: Path, **options: str | None) -> Path:
    olmoe().save_pretrained(directory)
    tokenizer(**options).save_pretrained(directory)
    return directory


def test_model_and_tokenizer_are_ready_to_use(tmp_path: Path) -> None:
    model, loaded = load_model(saved(tmp_path, pad_token="<s>"), device="cpu")
    assert not model.training
    assert (loaded.padding_side, loaded.pad_token) == ("left", "<s>")
    assert loading_notes(loaded) == ()
    expected = bits(olmoe())
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())


def test_a_missing_padding_token_is_replaced_and_noted(tmp_path: Path) -> None:
    _, loaded = load_model(saved(tmp_path), device="cpu")
    assert loaded.pad_token == "</s>"
    assert "no padding token" in loading_notes(loaded)[0]


def test_the_dtype_is_the_one_asked_for(tmp_path: Path) -> None:
    for dtype in ("bfloat16", torch.bfloat16):
        assert load_model(saved(tmp_path), dtype=dtype, device="cpu")[0].dtype == torch.bfloat16
    assert load_model(tmp_path, device="cpu")[0].dtype == torch.float32


def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No model could be read from"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="has no chat template"):
        load_model(saved(tmp_path / "plain", template=None))
    (saved(tmp_path / "bare") / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="no readable tokenizer"):
        load_model(tmp_path / "bare")
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(ModelError, match="is dense"):
        load_model(tmp_path / "dense")
    incomplete = saved(tmp_path / "incomplete")
    tensors = load_file(incomplete / "model.safetensors")
    del tensors["model.layers.1.mlp.gate.weight"]
    save_file(tensors, incomplete / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of .* \(model.layers.1.mlp.gate.weight"):
        load_model(incomplete)
    broken = saved(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(broken)


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_any_weight_is_read(tmp_path: Path, device: str) -> None:
    folder = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"'{device}' cannot be used .* give device: auto"):
        load_model(folder, device=device)

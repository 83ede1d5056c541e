"""Discovery counts what matched, holds it against the config, and never finds nothing in silence."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MiniMaxM2Config, MiniMaxM2ForCausalLM, PreTrainedModel

from models import FAMILIES, bits, deepseek_v3, mixtral, olmoe, qwen3_moe
from rasa_moe.errors import ModelError
from rasa_moe.moe import ExpertId, discover, families, scoring

# family -> MoE layers, dense layers, experts, top-k, scoring, shared experts
EXPECTED = {
    "olmoe": ((0, 1), (), 8, 2, "softmax", False),
    "qwen3_moe": ((0, 2), (1,), 8, 3, "softmax", False),
    "mixtral": ((0, 1), (), 4, 2, "softmax", False),
    "deepseek_v3": ((1, 2), (0,), 8, 2, "sigmoid", True),
    "gpt_oss": ((0, 1), (), 8, 2, "topk_softmax", False),
}


def test_counts_are_those_of_the_config(family: str, model: PreTrainedModel) -> None:
    moe = discover(model)
    indices, dense, num_experts, top_k, kind, has_shared = EXPECTED[family]
    assert tuple(layer.index for layer in moe.layers) == indices
    assert moe.dense_layers == dense
    assert (moe.num_layers, moe.num_experts, moe.top_k) == (len(indices), num_experts, top_k)
    assert {layer.scoring for layer in moe.layers} == {kind}
    assert {layer.has_shared_experts for layer in moe.layers} == {has_shared}
    total = len(indices) * num_experts
    assert moe.summary() == f"Routed experts: 2 layers x {num_experts} = {total} matched (expected {total})"
    assert len(moe.expert_ids()) == total


def test_names_lead_to_the_modules(model: PreTrainedModel) -> None:
    for layer in discover(model).layers:
        assert model.get_submodule(layer.experts_name) is layer.experts
        assert model.get_submodule(layer.router_name) is layer.router
        assert f".{layer.index}." in layer.experts_name


def test_looking_changes_neither_weights_nor_random_state(model: PreTrainedModel) -> None:
    before, random_state = bits(model), torch.get_rng_state()
    discover(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_dense_model_is_refused() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    with pytest.raises(ModelError, match="dense"):
        discover(LlamaForCausalLM(config))


@pytest.mark.parametrize("model_type", ["llama4", "jetmoe", "doge"])
def test_a_refused_family_is_named_with_its_reason(model_type: str) -> None:
    model = olmoe()
    model.config.model_type = model_type
    with pytest.raises(ModelError, match=f"'{model_type}' are not supported: it"):
        discover(model)


def test_zero_matches_raise() -> None:
    # The layout of transformers 4: a list of expert modules, which code for fused experts does not see.
    model = olmoe()
    for layer in model.model.layers:
        layer.mlp.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
    with pytest.raises(ModelError, match="No routed experts matched"):
        discover(model)


def test_one_layer_missing_raises() -> None:
    model = olmoe()
    model.model.layers[1].mlp.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
    with pytest.raises(ModelError, match=r"\(\[0\]\) differ from those its config promises \(\[0, 1\]\)"):
        discover(model)


@pytest.mark.parametrize(
    ("build", "field", "value", "sentence"),
    [
        (olmoe, "num_experts", 16, "experts 8 where the config promises 16"),
        (mixtral, "num_experts_per_tok", 3, "top-k 2 where the config promises 3"),
        (qwen3_moe, "mlp_only_layers", [], "differ from those its config promises"),
        (deepseek_v3, "first_k_dense_replace", 2, "differ from those its config promises"),
        (olmoe, "num_hidden_layers", 3, "differ from those its config promises"),
    ],
)
def test_a_model_that_breaks_its_config_is_refused(
    build: object, field: str, value: object, sentence: str
) -> None:
    model = build()  # type: ignore[operator]
    setattr(model.config, field, value)
    with pytest.raises(ModelError, match=sentence):
        discover(model)


def test_scoring_is_measured_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "SCORING", {"olmoe": "sigmoid", "deepseek_v3": "softmax"})
    assert discover(FAMILIES["deepseek_v3"]()).layers[0].scoring == "sigmoid"
    assert discover(FAMILIES["olmoe"]()).layers[0].scoring == "softmax"


def test_a_router_that_is_handed_its_selection_bias_is_measured() -> None:
    config = MiniMaxM2Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = MiniMaxM2ForCausalLM(config)
    torch.nn.init.normal_(model.model.layers[0].mlp.gate.weight)
    assert discover(model).layers[0].scoring == "sigmoid"


def test_an_unknown_scoring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = olmoe()
    router = model.model.layers[0].mlp.gate
    forward = router.forward

    def squared(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits, weights, ids = forward(hidden)
        return logits, weights**2, ids

    monkeypatch.setattr(router, "forward", squared)
    with pytest.raises(ModelError, match="neither softmax nor sigmoid"):
        discover(model)


def test_routers_whose_logits_are_all_equal_fall_back_on_the_declaration() -> None:
    model = deepseek_v3()
    with torch.no_grad():
        for layer in discover(model).layers:
            layer.router.weight.zero_()
    assert discover(model).layers[0].scoring == scoring.declared_scoring("deepseek_v3") == "sigmoid"


def test_expert_ids_are_checked() -> None:
    moe = discover(qwen3_moe())
    assert str(ExpertId(2, 7)) == "L2.E7"
    assert ExpertId(0, 7) < ExpertId(2, 0)
    assert moe.row_of(2) == 1
    for wrong, sentence in [
        ([ExpertId(1, 0)], "layer 1 has no routed experts"),
        ([ExpertId(0, 8)], "L0.E8 does not exist"),
        ([ExpertId(0, 3), ExpertId(0, 3)], "L0.E3 is given twice"),
    ]:
        with pytest.raises(ModelError, match=sentence):
            moe.by_layer(wrong)

"""A silenced expert is never chosen, and the model computes as if the expert did not exist."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models import FAMILIES, checkpointed, deepseek_v3, loss_of
from rasa_moe.errors import ModelError
from rasa_moe.moe import ExpertId, MoeMap, discover, record, silence
from rasa_moe.moe.layers import expert_tensor_names

SILENT = (1, 2)
# Config changes that make the same model without two of its experts.
SMALLER = {
    "olmoe": {"num_experts": 6},
    "qwen3_moe": {"num_experts": 6},
    "mixtral": {"num_local_experts": 2},
    "deepseek_v3": {"n_routed_experts": 6},
    "gpt_oss": {"num_local_experts": 6},
}
ONE_GROUP = {"deepseek_v3": {"n_group": 1, "topk_group": 1}}


def silent_experts(moe: MoeMap) -> list[ExpertId]:
    return [ExpertId(layer.index, expert) for layer in moe.layers for expert in SILENT]


def without_silent(family: str, model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model into one that has the other experts only."""
    smaller = FAMILIES[family](**SMALLER[family], **ONE_GROUP.get(family, {}))
    kept = [expert for expert in range(discover(model).num_experts) if expert not in SILENT]
    source = model.state_dict()
    per_expert = {
        f"{prefix}.{name}"
        for layer in discover(model).layers
        for prefix, module, names in [
            (layer.experts_name, layer.experts, expert_tensor_names(layer.experts)),
            (layer.router_name, layer.router, tuple(layer.router.state_dict())),
        ]
        for name in names
    }
    smaller.load_state_dict({name: t[kept] if name in per_expert else t for name, t in source.items()})
    return smaller


def test_the_model_computes_as_if_the_experts_did_not_exist(family: str, batch: dict[str, Tensor]) -> None:
    model = FAMILIES[family](**ONE_GROUP.get(family, {}))
    moe = discover(model)
    with torch.no_grad():
        before = model(**batch).logits
        with silence(moe, silent_experts(moe)), record(moe, model) as trace:
            silenced = model(**batch).logits
        expected = without_silent(family, model)(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(silenced[real], expected[real], rtol=1e-5, atol=1e-5)
    assert float((silenced - before)[real].abs().max()) > 1e-2, "the experts must have mattered"
    assert not any(bool(torch.isin(ids, torch.tensor(SILENT)).any()) for ids in trace.ids.values())
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)


def test_grouped_routing_avoids_silent_experts(batch: dict[str, Tensor]) -> None:
    model = deepseek_v3()
    moe = discover(model)
    with torch.no_grad(), record(moe, model) as trace, silence(moe, silent_experts(moe)):
        model(**batch)
    assert not any(bool(torch.isin(ids, torch.tensor(SILENT)).any()) for ids in trace.ids.values())


def test_a_selection_bias_cannot_bring_a_silent_expert_back(batch: dict[str, Tensor]) -> None:
    # Its score is 0 when silent, but the bias is added to the score and would win the top-k.
    model = deepseek_v3()
    moe = discover(model)
    for layer in moe.layers:
        layer.router.e_score_correction_bias[1] += 10
    with torch.no_grad(), record(moe, model) as trace, silence(moe, silent_experts(moe)):
        model(**batch)
    assert not any(bool(torch.isin(ids, torch.tensor(SILENT)).any()) for ids in trace.ids.values())


def test_groups_left_without_enough_experts_are_not_picked(batch: dict[str, Tensor]) -> None:
    # Three of the first group's four experts are silent; top-2 must come from the second group.
    model = deepseek_v3()
    moe = discover(model)
    experts = [ExpertId(layer.index, expert) for layer in moe.layers for expert in (0, 1, 3)]
    with torch.no_grad(), record(moe, model) as trace, silence(moe, experts):
        model(**batch)
    assert all(bool((ids >= 4).all()) for ids in trace.ids.values())


def test_groups_that_all_lack_experts_are_refused(batch: dict[str, Tensor]) -> None:
    model = deepseek_v3()
    moe = discover(model)
    experts = [ExpertId(2, expert) for expert in (0, 1, 2, 4, 5, 6)]
    with silence(moe, experts), pytest.raises(ModelError, match="expert groups"):
        model(**batch)


def test_fewer_than_top_k_left_is_refused(moe: MoeMap) -> None:
    layer = moe.layers[-1]
    experts = [ExpertId(layer.index, expert) for expert in range(layer.num_experts - layer.top_k + 1)]
    with (
        pytest.raises(ModelError, match=f"leaves {layer.top_k - 1} in layer {layer.index}"),
        silence(moe, experts),
    ):
        pass
    assert "forward" not in vars(layer.router)
    with silence(moe, experts[1:]):
        pass


def test_gradients_stay_finite_and_survive_checkpointing(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    found = []
    for prepare in (lambda one: one, checkpointed):
        prepare(model)
        with silence(moe, silent_experts(moe)):
            loss_of(model, batch).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for plain, rerun in zip(*found, strict=True):
        assert bool(plain.isfinite().all())
        torch.testing.assert_close(plain, rerun, rtol=1e-5, atol=1e-7)

"""Changes of attention begin at nothing, train their thin matrices alone, and are what `merge` writes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models import FAMILIES, bits, loss_of
from rasa_moe.errors import ModelError
from rasa_moe.moe import (
    ExpertId,
    ExpertSlices,
    LowRankAttention,
    MoeMap,
    attention_projections,
    attention_weights,
    discover,
    put_back,
    snapshot,
)
from rasa_moe.moe.layers import expert_tensor_names

RANK = 3


def changed(moe: MoeMap) -> LowRankAttention:
    """Return changes that are not 0."""
    attention = LowRankAttention(moe, rank=RANK, seed=3)
    with torch.no_grad():
        for thin in attention.parameters():
            thin.normal_(std=0.1)
    return attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_they_change_no_bit(family: str, batch: dict[str, Tensor], dtype: torch.dtype) -> None:
    model = FAMILIES[family]().to(dtype)
    moe = discover(model)
    before = bits(model)
    with torch.no_grad():
        logits = model(**batch).logits
        with LowRankAttention(moe, rank=RANK) as attention:
            assert all(thin.dtype == torch.float32 for thin in attention.parameters())
            assert torch.equal(model(**batch).logits, logits)
        attention.merge()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_gradients_are_those_of_the_product(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    """W = W0 + 2 BA, so dL/dB = 2 dL/dW A' and dL/dA = 2 B' dL/dW, with dL/dW from full training."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attention = changed(moe)
    with attention:
        loss_of(model, batch).backward()
        assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    thin = dict(zip(attention.state_dict(), attention.parameters(), strict=True))
    attention.merge()
    loss_of(model, batch).backward()
    full = dict(model.named_parameters())
    for name in attention_projections(moe):
        down, up, of_weight = thin[f"{name}.down"], thin[f"{name}.up"], full[f"{name}.weight"].grad
        assert of_weight is not None and float(of_weight.abs().max()) > 0
        torch.testing.assert_close(up.grad, 2 * of_weight @ down.detach().T, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(down.grad, 2 * up.detach().T @ of_weight, rtol=1e-3, atol=1e-6)


def test_a_merged_change_counts_once_when_it_goes_on(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    names = attention_weights(moe)
    before, base = bits(model), snapshot(moe, model, (), also=names)
    attention = changed(moe)
    with torch.no_grad():
        plain = model(**batch).logits
        with attention:
            added = model(**batch).logits
        assert torch.equal(model(**batch).logits, plain), "closed and not merged, nothing is added"
        attention.merge()
        torch.testing.assert_close(model(**batch).logits, added, rtol=1e-4, atol=1e-4)
        assert float((added - plain).abs().max()) > 1e-2
        with attention:
            assert torch.equal(model(**batch).logits, added)
        attention.merge()
        torch.testing.assert_close(model(**batch).logits, added, rtol=1e-4, atol=1e-4)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(names)
    put_back(moe, model, (), before=base, also=names)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_state_goes_to_another_object_of_the_same_rank(model: PreTrainedModel, moe: MoeMap) -> None:
    state = changed(moe).state_dict()
    other = LowRankAttention(moe, rank=RANK)
    other.load_state_dict(state)
    assert all(torch.equal(thin, state[name]) for name, thin in other.state_dict().items())
    with pytest.raises(ModelError, match="changes of attention"):
        LowRankAttention(moe, rank=RANK + 1).load_state_dict(state)


def test_a_model_without_attention_is_refused_in_one_sentence(
    model: PreTrainedModel, moe: MoeMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in model.modules():
        if type(module).__name__.endswith("Attention"):
            monkeypatch.setattr(module, "__class__", type("Mixer", (type(module),), {}))
    with pytest.raises(ModelError, match=r"No linear layer of attention .* align\.attention_rank to null"):
        attention_projections(moe)


def test_projections_lie_in_attention_alone(family: str) -> None:
    moe = discover(FAMILIES[family]())
    found = attention_projections(moe)
    assert all(isinstance(module, nn.Linear) for module in found.values())
    assert not any("experts" in name or "mlp" in name or "gate." in name for name in found)
    assert list(found) == [name.removesuffix(".weight") for name in attention_weights(moe)]


def test_how_far_it_moved_is_measured_on_the_weights_and_not_on_thin_matrices(moe: MoeMap) -> None:
    """The one that begins at 0 would make any change look large."""
    attention = LowRankAttention(moe, rank=RANK, seed=3)
    begun = attention.state_dict()
    assert attention.change_since(begun) == 0.0
    with torch.no_grad():
        for thin in attention.parameters():
            thin.add_(0.01 * torch.randn(thin.shape, generator=torch.Generator().manual_seed(1)))
    projections = attention_projections(moe).values()
    before = [projection.weight.detach().double().clone() for projection in projections]
    attention.merge()
    after = [projection.weight.detach().double() for projection in projections]
    change = sum(float((now - then).square().sum()) for then, now in zip(before, after, strict=True))
    size = sum(float(then.square().sum()) for then in before)
    assert attention.change_since(begun) == pytest.approx((change / size) ** 0.5, rel=1e-5)


def test_low_rank_changes_of_experts_are_measured_on_their_rows_as_well(moe: MoeMap) -> None:
    slices = ExpertSlices(moe, [ExpertId(moe.layers[-1].index, 1)], rank=8)
    begun = slices.state_dict()
    experts = moe.layers[-1].experts
    names = expert_tensor_names(experts)
    before = [experts.get_parameter(name)[1].detach().double().clone() for name in names]
    with torch.no_grad():
        for rows in slices.parameters():
            rows.add_(0.01)
    slices.merge()
    after = [experts.get_parameter(name)[1].detach().double() for name in names]
    change = sum(float((now - then).square().sum()) for then, now in zip(before, after, strict=True))
    size = sum(float(then.square().sum()) for then in before)
    assert slices.change_since(begun) == pytest.approx((change / size) ** 0.5, rel=1e-4)

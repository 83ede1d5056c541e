"""Experts held as 8-bit integers: near the weights, with the gradients of those integers, all put back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models import bits, loss_of
from rasa_moe.errors import ModelError
from rasa_moe.moe import ExpertId, ExpertSlices, MoeMap, int8_experts
from rasa_moe.moe.layers import expert_tensor_names
from rasa_moe.moe.quantised import HELD, quantised


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def first_experts(moe: MoeMap) -> list[ExpertId]:
    return moe.expert_ids()[:2]


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_off_by_half_a_step_at_most(is_transposed: bool, dtype: torch.dtype) -> None:
    weights = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights[1, 2] = 0  # a channel of zeros has no scale of its own
    values, scales = quantised(weights, is_transposed)
    assert values.dtype == torch.int8 and scales.dtype == dtype
    assert scales.shape == ((3, 1, 16) if is_transposed else (3, 8, 1))
    off = (values.float() * scales.float() - weights.float()).abs()
    # Where the scale was rounded down, the largest value is cut: by no more than bf16 rounds.
    assert (off <= scales.float() * (0.51 if dtype == torch.float32 else 1.0)).all()


def test_the_model_comes_back_bit_for_bit(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    before, implementation = bits(model), model.get_experts_implementation()
    with torch.no_grad():
        plain = model(**batch).logits
        with int8_experts(moe):
            for layer in moe.layers:
                assert layer.experts.get_parameter("down_proj").dtype == torch.int8
            rounded = model(**batch).logits
    assert not torch.equal(rounded, plain), "the integers took no part"
    assert (rounded - plain).norm() < 0.05 * plain.norm()
    same_bits(bits(model), before)
    assert model.get_experts_implementation() == implementation
    assert not any(layer.experts in HELD for layer in moe.layers)


def test_gradients_are_those_of_the_weights_that_the_integers_stand_for(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    def gradients() -> list[Tensor]:
        with ExpertSlices(moe, first_experts(moe)) as slices:
            loss_of(model, batch).backward()
        return [parameter.grad for parameter in slices.parameters() if parameter.grad is not None]

    with int8_experts(moe):
        found = gradients()
        rounded = {
            (layer, name): held.weights()
            for layer in moe.layers
            for name, held in HELD[layer.experts].items()
        }
    chosen = moe.by_layer(first_experts(moe))
    with torch.no_grad():
        for (layer, name), weights in rounded.items():
            parameter = layer.experts.get_parameter(name)
            exact = [number for row in chosen for number in chosen[row] if moe.layers[row] is layer]
            weights[exact] = parameter[exact]
            parameter.copy_(weights)
    same = gradients()
    assert found and len(found) == len(same)
    for one, other in zip(found, same, strict=True):
        torch.testing.assert_close(one, other)


def test_slices_start_from_the_weights_and_are_merged_into_them(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    chosen = first_experts(moe)
    before = bits(model)
    with int8_experts(moe):
        slices = ExpertSlices(moe, chosen)
        slices.merge()
        with torch.no_grad():
            for parameter in slices.parameters():
                parameter.mul_(2)
        merged_before = model(**batch).logits
        slices.merge()
        assert not torch.equal(model(**batch).logits, merged_before)
    layer = moe.layers[0]
    touched = {f"{layer.experts_name}.{name}" for name in expert_tensor_names(layer.experts)}
    after = bits(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == touched
    down = layer.experts.get_parameter("down_proj").detach()
    trained = dict(slices.named_parameters())[f"{layer.experts_name}.down_proj[selected]"]
    assert torch.equal(down[:2], trained.to(down.dtype))


def test_nothing_but_integers_is_kept_for_backward(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    sizes = {layer.experts.get_parameter("down_proj").shape for layer in moe.layers}
    watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with int8_experts(moe), ExpertSlices(moe, first_experts(moe)), watched:
        loss_of(model, batch)
    assert not [tensor.shape for tensor in kept if tensor.shape in sizes]


def test_twice_is_refused(moe: MoeMap) -> None:
    with int8_experts(moe), pytest.raises(ModelError, match="already"), int8_experts(moe):
        pass
    assert not any(layer.experts in HELD for layer in moe.layers)

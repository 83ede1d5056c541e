"""Experts of few bits: near the weights, with the gradients of their integers, all put back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models import bits, loss_of
from rasa_moe.errors import ModelError
from rasa_moe.moe import ExpertId, ExpertSlices, MoeMap, low_bit, low_bit_experts
from rasa_moe.moe.layers import expert_tensor_names
from rasa_moe.moe.quantised import HELD, Bits, QuantisedRows, quantised


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def first_experts(moe: MoeMap) -> list[ExpertId]:
    return moe.expert_ids()[:2]


@pytest.fixture(params=[8, 4])
def bits_of_a_weight(request: pytest.FixtureRequest) -> Bits:
    found: Bits = request.param
    return found


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_off_by_half_a_step_at_most(
    is_transposed: bool, dtype: torch.dtype, bits_of_a_weight: Bits
) -> None:
    weights = torch.randn(3, 8, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights[1, 2] = 0  # a channel of zeros has no scale of its own
    given = weights.transpose(1, 2).contiguous() if is_transposed else weights
    values, scales = quantised(given, bits=bits_of_a_weight, is_transposed=is_transposed)
    assert scales.dtype == dtype and scales.shape == (3, 8, 1 if bits_of_a_weight == 8 else 3)
    assert values.element_size() * values.numel() == weights.numel() * bits_of_a_weight // 8
    rows = QuantisedRows(
        bits=bits_of_a_weight, is_transposed=is_transposed, values=values, scales=scales, original=given
    )
    found = rows.weights()
    assert found.dtype == dtype and found.shape == given.shape
    found = found.transpose(1, 2) if is_transposed else found
    # Every block has a scale of its own: its largest weight stands for the last integer.
    largest = weights.float().unflatten(-1, (scales.shape[-1], -1)).abs().amax(-1)
    torch.testing.assert_close(
        scales.float() * (127 if bits_of_a_weight == 8 else 7), largest, rtol=0.01, atol=1e-30
    )
    off = (found.float() - weights.float()).abs().unflatten(-1, (scales.shape[-1], -1))
    # Where the scale was rounded down, the largest value is cut: by no more than bf16 rounds.
    assert (off <= scales.float().unsqueeze(-1) * (0.51 if dtype == torch.float32 else 1.0)).all()


def test_four_bits_keep_every_integer_in_its_place() -> None:
    weights = torch.arange(-7.0, 8.0).repeat(3)[:32].reshape(1, 1, 32)
    values, scales = quantised(weights, bits=4, is_transposed=False)
    assert values.shape == (1, 1, 16) and scales.tolist() == [[[1.0]]]
    rows = QuantisedRows(bits=4, is_transposed=False, values=values, scales=scales, original=weights)
    assert torch.equal(rows.weights(), weights)


def test_an_odd_number_of_inputs_cannot_be_packed() -> None:
    with pytest.raises(ModelError, match=r"5 inputs can't be held in 4 bits.*align\.base_bits to 8"):
        quantised(torch.ones(1, 2, 5), bits=4, is_transposed=False)
    assert quantised(torch.ones(1, 2, 5), bits=8, is_transposed=False)[0].shape == (1, 2, 5)


def test_a_model_that_cannot_be_packed_is_left_as_it_was(
    model: PreTrainedModel, moe: MoeMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bits(model)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    calls: list[Tensor] = []

    def second_fails(weights: Tensor, *, bits: Bits, is_transposed: bool) -> tuple[Tensor, Tensor]:
        calls.append(weights)
        if len(calls) == 2:
            raise ModelError("odd")
        return quantised(weights, bits=bits, is_transposed=is_transposed)

    monkeypatch.setattr(low_bit, "quantised", second_fails)
    with pytest.raises(ModelError, match="odd"), low_bit_experts(moe, bits=4):
        pass
    same_bits(bits(model), before)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert not any(layer.experts in HELD for layer in moe.layers)


def test_the_model_comes_back_bit_for_bit(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], bits_of_a_weight: Bits
) -> None:
    before, implementation = bits(model), model.get_experts_implementation()
    with torch.no_grad():
        plain = model(**batch).logits
        with low_bit_experts(moe, bits=bits_of_a_weight):
            for layer in moe.layers:
                held = layer.experts.get_parameter("down_proj").dtype
                assert held == (torch.int8 if bits_of_a_weight == 8 else torch.uint8)
            rounded = model(**batch).logits
    assert not torch.equal(rounded, plain), "the integers took no part"
    assert (rounded - plain).norm() < (0.05 if bits_of_a_weight == 8 else 0.5) * plain.norm()
    same_bits(bits(model), before)
    assert model.get_experts_implementation() == implementation
    assert not any(layer.experts in HELD for layer in moe.layers)


def test_gradients_are_those_of_the_weights_that_the_integers_stand_for(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], bits_of_a_weight: Bits
) -> None:
    def gradients() -> list[Tensor]:
        with ExpertSlices(moe, first_experts(moe)) as slices:
            loss_of(model, batch).backward()
        return [parameter.grad for parameter in slices.parameters() if parameter.grad is not None]

    with low_bit_experts(moe, bits=bits_of_a_weight):
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
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], bits_of_a_weight: Bits
) -> None:
    chosen = first_experts(moe)
    before = bits(model)
    with low_bit_experts(moe, bits=bits_of_a_weight):
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
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], bits_of_a_weight: Bits
) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    sizes = {layer.experts.get_parameter("down_proj").shape for layer in moe.layers}
    watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with low_bit_experts(moe, bits=bits_of_a_weight), ExpertSlices(moe, first_experts(moe)), watched:
        loss_of(model, batch)
    assert not [tensor.shape for tensor in kept if tensor.shape in sizes]


def test_twice_is_refused(moe: MoeMap) -> None:
    with low_bit_experts(moe), pytest.raises(ModelError, match="already"), low_bit_experts(moe):
        pass
    assert not any(layer.experts in HELD for layer in moe.layers)

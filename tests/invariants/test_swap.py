"""Other weights for a while: what is held beside the model, and that the model comes back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from rasa_moe.errors import ModelError
from rasa_moe.moe import (
    ExpertId,
    Piece,
    Swap,
    differing,
    discover,
    make_patch,
    pieces_of,
    put_back_after,
    snapshot,
    swapped,
)
from unit.tiny import tiny_model

DOWN = "model.layers.1.mlp.experts.down_proj"
NORM = "model.norm.weight"


def bits(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def other_than(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return every tensor of the model, with other values in two rows of one and in the whole of another."""
    tensors = bits(model)
    tensors[DOWN][[1, 3]] += 0.5
    tensors[NORM] += 1.0
    return tensors


def test_only_the_rows_that_differ_are_held() -> None:
    model = tiny_model()
    found = {piece.name: piece for piece in differing(model, pieces_of(other_than(model)))}
    assert found.keys() == {DOWN, NORM}
    assert found[DOWN].rows == [1, 3]
    assert found[DOWN].values.shape[0] == 2
    assert found[NORM].rows is None


def test_rows_of_rows_are_found() -> None:
    model = tiny_model()
    rows = [0, 1, 3]
    values = other_than(model)[DOWN][rows]
    (piece,) = differing(model, [Piece(DOWN, rows, values)])
    assert piece.rows == [1, 3]
    assert torch.equal(piece.values, values[1:])


def test_the_model_is_the_other_and_comes_back_bit_for_bit() -> None:
    model = tiny_model()
    before, tensors = bits(model), other_than(model)
    given = copy.deepcopy(tensors)
    swap = Swap(model, differing(model, pieces_of(tensors)))
    for _ in range(2):
        swap.exchange()
        assert swap.is_in and same(bits(model), tensors)
        swap.exchange()
        assert not swap.is_in and same(bits(model), before)
    with pytest.raises(KeyError), swapped(model, pieces_of(tensors)):
        assert same(bits(model), tensors)
        raise KeyError
    assert same(bits(model), before)
    assert same(tensors, given), "what was given is not written into"


def test_an_exchange_that_fails_leaves_the_model_as_it_was() -> None:
    model = tiny_model()
    before = bits(model)
    good = list(differing(model, pieces_of(other_than(model))))
    swap = Swap(model, [*good, Piece(NORM, None, torch.zeros(3))])
    for _ in range(2):
        with pytest.raises(RuntimeError):
            swap.exchange()
        assert not swap.is_in and same(bits(model), before)


@pytest.mark.parametrize(("name", "values"), [(NORM, torch.zeros(3)), ("model.nothing", torch.zeros(1))])
def test_weights_of_another_model_are_refused(name: str, values: Tensor) -> None:
    model = tiny_model()
    before = bits(model)
    with pytest.raises(ModelError, match="another model"), swapped(model, [Piece(name, None, values)]):
        pass
    assert same(bits(model), before)


def test_a_model_is_kept_whatever_training_does() -> None:
    model = tiny_model()
    before = bits(model)
    with put_back_after(model), torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert same(bits(model), before)


def test_a_patch_gives_its_pieces_to_its_base_alone() -> None:
    model = tiny_model()
    moe = discover(model)
    experts = [ExpertId(1, 3)]
    before = snapshot(moe, model, experts)
    base = bits(model)
    with torch.no_grad():
        model.get_parameter(DOWN)[3] += 1.0
    repaired = bits(model)
    patch = make_patch(moe, model, experts, before=before, base_name="tiny")
    with pytest.raises(ModelError, match="applied to the model already"):
        patch.pieces(model)
    patch.revert(model)
    with swapped(model, patch.pieces(model)):
        assert same(bits(model), repaired)
    assert same(bits(model), base)


@pytest.mark.parametrize("interrupted", range(1, 10))
def test_ctrl_c_in_an_exchange_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    """Wherever it comes, in the middle of a row as well."""
    model = tiny_model()
    before, tensors = bits(model), other_than(model)
    swap = Swap(model, differing(model, pieces_of(tensors)))
    copy_, calls = Tensor.copy_, 0

    def copied(target: Tensor, source: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        found = copy_(target, source)
        if calls == interrupted:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Tensor, "copy_", copied)
    with pytest.raises(KeyboardInterrupt):
        swap.exchange()  # three parts, three copies each
    monkeypatch.undo()
    assert not swap.is_in and same(bits(model), before)
    swap.exchange()
    assert same(bits(model), tensors)

"""Hidden states at chosen positions are read and shifted before the last MoE layer, and nowhere else."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models import loss_of
from rasa_moe.moe import (
    ExpertSlices,
    MoeMap,
    checkpointed,
    entered_with,
    kept_entry,
    record,
    shifted,
)


def last_tokens(batch: dict[str, Tensor]) -> Tensor:
    positions = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    positions[:, -1] = True
    return positions


def assert_same_bits(gradients: list[Tensor | None], others: list[Tensor | None]) -> None:
    assert any(one is not None for one in gradients)
    for one, other in zip(gradients, others, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]


def test_what_is_kept_is_what_the_decoder_layer_is_given(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    with torch.no_grad(), kept_entry(moe, model) as entries:
        states = model(**batch, output_hidden_states=True).hidden_states
    (kept,) = entries
    assert torch.equal(kept, states[moe.layers[-1].index])


def test_a_shift_moves_its_positions_by_just_that_and_leaves_earlier_layers_alone(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    positions = last_tokens(batch)
    shifts = torch.randn(len(positions), model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with record(moe, model) as before:
            plain = model(**batch).logits
        shift, kept = shifted(moe, model, positions, shifts), kept_entry(moe, model)
        with shift, kept as entries, record(moe, model) as after:
            moved = model(**batch).logits
        with kept_entry(moe, model) as unshifted:
            again = model(**batch).logits
    torch.testing.assert_close((entries[0] - unshifted[0])[positions], shifts)
    assert torch.equal(again, plain), "the model is as it was"
    # Only the last token was shifted, and no other looks at it.
    torch.testing.assert_close(moved[:, :-1], plain[:, :-1])
    assert not torch.equal(moved[:, -1], plain[:, -1])
    names = [layer.name for layer in moe.layers]
    for name in names[:-1]:
        assert torch.equal(after.calls[0].ids[name], before.calls[0].ids[name])


def test_no_shift_changes_no_bit(model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]) -> None:
    positions = last_tokens(batch)
    with torch.no_grad():
        plain = model(**batch).logits
        with shifted(moe, model, positions, torch.zeros(len(positions), model.config.hidden_size)):
            assert torch.equal(model(**batch).logits, plain)


@pytest.mark.parametrize("is_frozen_below", [False, True])
def test_a_layer_that_is_run_again_is_shifted_again(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], is_frozen_below: bool
) -> None:
    positions = last_tokens(batch)
    shifts = torch.randn(len(positions), model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    experts = [
        expert for expert in moe.expert_ids() if not is_frozen_below or expert.layer == moe.layers[-1].index
    ]

    def gradients(*, again: bool) -> list[Tensor | None]:
        with ExpertSlices(moe, experts) as slices, checkpointed(model) if again else nullcontext():
            with shifted(moe, model, positions, shifts):
                loss = loss_of(model, batch)
            loss.backward()
        return [parameter.grad for parameter in slices.parameters()]

    assert_same_bits(gradients(again=False), gradients(again=True))


@pytest.mark.parametrize("again", [False, True])
def test_a_call_begun_at_the_last_layer_learns_the_same_bits(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], again: bool
) -> None:
    def gradients(*, is_begun_late: bool) -> list[Tensor | None]:
        with ExpertSlices(moe, moe.expert_ids()) as slices, checkpointed(model) if again else nullcontext():
            if is_begun_late:
                with kept_entry(moe, model) as entries:
                    model(**batch)
                with entered_with(moe, model, entries[0]):
                    loss = loss_of(model, batch)
            else:
                loss = loss_of(model, batch)
            loss.backward()
        return [parameter.grad for parameter in slices.parameters()]

    assert_same_bits(gradients(is_begun_late=False), gradients(is_begun_late=True))


def test_a_call_begun_at_the_last_layer_runs_no_earlier_one_and_leaves_the_model_as_it_was(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    run: list[str] = []
    handles = [
        layer.router.register_forward_hook(lambda *args, name=layer.name: run.append(name))
        for layer in moe.layers
    ]
    with torch.no_grad():
        with kept_entry(moe, model) as entries:
            plain = model(**batch).logits
        run.clear()
        with pytest.raises(KeyboardInterrupt), entered_with(moe, model, entries[0]):
            assert torch.equal(model(**batch).logits, plain)
            raise KeyboardInterrupt
        assert run == [moe.layers[-1].name]
        assert torch.equal(model(**batch).logits, plain)
    assert run[1:] == [layer.name for layer in moe.layers]
    for handle in handles:
        handle.remove()

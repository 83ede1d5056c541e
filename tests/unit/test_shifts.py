"""Repair shows refusals in the context in which they are hardest: which rows, along what, how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from rasa_moe.align import align
from rasa_moe.align.batches import TrainingBatch, make_batches
from rasa_moe.align.losses import supervised_losses
from rasa_moe.align.shifts import ContextShifts, context_directions
from rasa_moe.align.supervised import SupervisedLoss
from rasa_moe.config import AlignConfig
from rasa_moe.moe import ExpertId, discover, shifted
from unit.tiny import tiny_model, tiny_pairs, tiny_retain, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WEIGHTS = {"jailbreak": 1.0, "anchor": 1.0, "retain": 1.0, "recovery": 1.0}


def batch_of() -> TrainingBatch:
    (batch,) = make_batches(
        TOKENIZER,
        pairs=tiny_pairs(),
        retain=tiny_retain(4),
        batch_size=8,
        seed=0,
        retain_per_pair=1,
        recovery_depth=0.5,
    )
    return batch


def directions_of(model: Any) -> torch.Tensor:
    return context_directions(
        model, TOKENIZER, discover(model), pairs=tiny_pairs(), retain=tiny_retain(4), batch_tokens=200
    )


def entered(
    model: Any,
    batch: TrainingBatch,
    shifts: ContextShifts | None,
    batch_tokens: int = 10_000,
    weights: Mapping[str, float] = WEIGHTS,
    index: int = 0,
) -> torch.Tensor:
    """Return (B,D), the last prompt tokens as the loss lets the last layer see them."""
    seen: list[torch.Tensor] = []
    norm = model.model.layers[-1].input_layernorm
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    batches = [batch] * (index + 1)
    loss = SupervisedLoss(model, batches, weights=weights, batch_tokens=batch_tokens, shifts=shifts)
    found = torch.zeros(len(batch.chats.input_ids), model.config.hidden_size)
    for micro, _ in zip(loss.micro_batches(batch), loss(batch, index), strict=True):
        found[micro.rows] = seen.pop()[micro.chats.spans["last_prompt"]]
    handle.remove()
    return found


def refusal_loss(model: Any, batch: TrainingBatch, shifts: torch.Tensor) -> float:
    """Return the cross-entropy of jailbreaks and anchors, with (B,D) added at their last prompt tokens."""
    with torch.no_grad(), shifted(discover(model), model, batch.chats.spans["last_prompt"], shifts):
        logits = model(input_ids=batch.chats.input_ids, attention_mask=batch.chats.attention_mask).logits
    (micro,) = batch.micro_batches(batch_tokens=10_000)
    losses = supervised_losses(logits, batch, micro)
    return float(losses["jailbreak"] + losses["anchor"])


@pytest.mark.parametrize("batch_tokens", [10_000, 40])
@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_half_of_the_refusals_are_shifted_by_the_length_along_the_directions(
    batch_tokens: int, drift: float
) -> None:
    model, batch = tiny_model(), batch_of()
    directions = directions_of(model)
    shifts = ContextShifts(model, discover(model), directions, length=0.5, seed=0)
    weights = {**WEIGHTS, "drift": drift}
    moved = entered(model, batch, shifts, batch_tokens, weights) - entered(
        model, batch, None, batch_tokens, weights
    )
    refused = torch.cat([batch.parts["jailbreak"], batch.parts["anchor"]])
    is_shifted = (moved != 0).any(dim=1)
    assert is_shifted.sum() == is_shifted[refused].sum() == len(refused) // 2
    # What is left beside the directions is rounding.
    strengths = torch.linalg.lstsq(directions.T, moved.T).solution.T
    torch.testing.assert_close(strengths @ directions, moved, rtol=1e-3, atol=1e-4)
    lengths = strengths[is_shifted].norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5), rtol=1e-2, atol=0)


def test_every_epoch_and_batch_shifts_a_half_of_its_own_and_the_same_one_again() -> None:
    """Else the shift itself would be what is refused, or pairs never shown in another context."""
    model, batch = tiny_model(), batch_of()
    directions = directions_of(model)
    without = entered(model, batch, None)

    def shifted_rows(epoch: int, index: int, batch_tokens: int = 10_000) -> frozenset[int]:
        shifts = ContextShifts(model, discover(model), directions, length=0.5, seed=0)
        shifts.begin_epoch(epoch)
        moved = entered(model, batch, shifts, batch_tokens, index=index) - without
        return frozenset(moved.abs().amax(dim=1).gt(1e-4).nonzero().flatten().tolist())

    drawn = [shifted_rows(*place) for place in ((0, 0), (1, 0), (0, 1))]
    assert len(set(drawn)) == 3
    assert shifted_rows(1, 0) == shifted_rows(1, 0, batch_tokens=40) == drawn[1]


def test_the_shift_makes_refusals_harder_than_none_its_opposite_and_chance() -> None:
    model, batch = tiny_model(), batch_of()
    directions = directions_of(model)
    without = entered(model, batch, None)

    def moved_by(length: float) -> torch.Tensor:
        shifts = ContextShifts(model, discover(model), directions, length=length, seed=0)
        return entered(model, batch, shifts) - without

    shift = moved_by(0.05)
    hardest = refusal_loss(model, batch, shift)
    assert hardest > refusal_loss(model, batch, torch.zeros_like(shift)) > refusal_loss(model, batch, -shift)
    is_moved = (shift.norm(dim=1) > 0)[:, None]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(shift), len(directions), generator=generator)
        chance = 0.05 * torch.nn.functional.normalize(drawn, dim=1) @ directions * is_moved
        assert hardest > refusal_loss(model, batch, chance)


def test_no_weight_learns_from_the_search_for_a_shift() -> None:
    model, batch = tiny_model(), batch_of()
    model.requires_grad_(True)
    shifts = ContextShifts(model, discover(model), directions_of(model), length=0.5, seed=0)
    loss = SupervisedLoss(model, [batch], weights=WEIGHTS, batch_tokens=10_000, shifts=shifts)
    passes = loss(batch, 0)
    next(passes)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_directions_of_families_are_mean_differences_and_questions_take_no_part() -> None:
    model = tiny_model()
    moe, pairs = discover(model), tiny_pairs()
    questions = [replace(row, kind="question") for row in tiny_retain(4)]
    directions = context_directions(model, TOKENIZER, moe, pairs=pairs, retain=questions, batch_tokens=200)
    assert directions.shape == (len({pair.family for pair in pairs}), model.config.hidden_size)

    def state(messages: Any) -> torch.Tensor:
        ids = TOKENIZER.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        return hidden[moe.layers[-1].index][0, -1]

    family = sorted({pair.family for pair in pairs})[0]
    expected = torch.stack(
        [state(pair.jailbreak) - state(pair.anchor) for pair in pairs if pair.family == family]
    ).mean(dim=0)
    torch.testing.assert_close(directions[0], expected, rtol=1e-4, atol=1e-5)


def test_a_length_of_0_is_no_shift_and_another_length_is_another_repair() -> None:
    model = tiny_model()
    moe = discover(model)
    data: dict[str, Any] = {"pairs": tiny_pairs(), "retain": tiny_retain(4)}
    losses = {}
    for length in (0.0, 0.5):
        config = AlignConfig(rounds=1, router_epochs=0, batch_size=4, expert_lr=1e-3, context_shift=length)
        found = align(model, TOKENIZER, moe, **data, experts=[ExpertId(0, 1)], config=config)
        losses[length] = [line["loss"] for line in found.log if "step" in line]
    assert losses[0.0] != losses[0.5]


def test_every_epoch_of_a_repair_shifts_a_half_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(ContextShifts, "begin_epoch", lambda self, epoch: begun.append(epoch))
    model = tiny_model()
    config = AlignConfig(rounds=2, repair_epochs=2, router_epochs=1, order="experts_first", context_shift=0.5)
    data: dict[str, Any] = {"pairs": tiny_pairs(), "retain": tiny_retain(4)}
    align(model, TOKENIZER, discover(model), **data, experts=[ExpertId(0, 1)], config=config)
    assert begun == [0, 1, 2, 3]

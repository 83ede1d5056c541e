"""Repair shows requests in other contexts: which rows, along what, and alike where a run is resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rasa_moe.align import align
from rasa_moe.align.batches import TrainingBatch, make_batches
from rasa_moe.align.shifts import ContextShifts, context_directions, context_shifts
from rasa_moe.align.supervised import SupervisedLoss
from rasa_moe.config import AlignConfig
from rasa_moe.moe import ExpertId, discover
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
        with_recovery=True,
    )
    return batch


def directions_of(model: Any) -> torch.Tensor:
    return context_directions(
        model, TOKENIZER, discover(model), pairs=tiny_pairs(), retain=tiny_retain(4), batch_tokens=200
    )


def entered(
    model: Any, batch: TrainingBatch, shifts: ContextShifts | None, batch_tokens: int = 10_000
) -> torch.Tensor:
    """Return (B,D), the last prompt tokens as the loss lets the last layer see them."""
    seen: list[torch.Tensor] = []
    norm = model.model.layers[-1].input_layernorm
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    loss = SupervisedLoss(model, [batch], weights=WEIGHTS, batch_tokens=batch_tokens, shifts=shifts)
    found = torch.zeros(len(batch.chats.input_ids), model.config.hidden_size)
    for micro, _ in zip(loss.micro_batches(batch), loss(batch, 0), strict=True):
        found[micro.rows] = seen.pop()[micro.chats.spans["last_prompt"]]
    handle.remove()
    return found


@pytest.mark.parametrize("batch_tokens", [10_000, 40])
def test_all_but_cut_answers_are_shifted_along_the_directions(batch_tokens: int) -> None:
    model, batch = tiny_model(), batch_of()
    directions = directions_of(model)
    shifts = ContextShifts(model, discover(model), directions, scale=0.5, seed=0)
    moved = entered(model, batch, shifts, batch_tokens) - entered(model, batch, None, batch_tokens)
    is_cut = torch.zeros(len(moved), dtype=torch.bool)
    is_cut[batch.parts["recovery"]] = True
    assert (moved[is_cut] == 0).all() and (moved[~is_cut].norm(dim=1) > 0).all()
    # What is left beside the directions is rounding.
    strengths = torch.linalg.lstsq(directions.T, moved.T).solution
    torch.testing.assert_close(strengths.T @ directions, moved, rtol=1e-3, atol=1e-4)


def test_strengths_differ_by_epoch_and_batch_and_come_again() -> None:
    model, batch = tiny_model(), batch_of()
    shifts = ContextShifts(model, discover(model), directions_of(model), scale=0.5, seed=0)
    first = entered(model, batch, shifts)
    assert torch.equal(entered(model, batch, shifts), first)
    shifts.begin_epoch(1)
    assert not torch.equal(entered(model, batch, shifts), first)
    shifts.begin_epoch(0)
    assert torch.equal(entered(model, batch, shifts), first)


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


def test_a_scale_of_0_is_no_shift_and_another_scale_is_another_repair() -> None:
    model = tiny_model()
    moe = discover(model)
    data: dict[str, Any] = {"pairs": tiny_pairs(), "retain": tiny_retain(4)}
    assert context_shifts(model, TOKENIZER, moe, **data, scale=0.0, batch_tokens=200, seed=0) is None
    losses = {}
    for scale in (0.0, 0.5):
        config = AlignConfig(rounds=1, router_epochs=0, batch_size=4, expert_lr=1e-3, context_shift=scale)
        found = align(model, TOKENIZER, moe, **data, experts=[ExpertId(0, 1)], config=config)
        losses[scale] = [line["loss"] for line in found.log if "step" in line]
    assert losses[0.0] != losses[0.5]

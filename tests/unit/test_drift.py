"""The drift of scores is measured from the base model, over the vocabulary, on harmless conversations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rasa_moe.align import align
from rasa_moe.align.batches import TrainingBatch, make_batches
from rasa_moe.align.losses import predicting, score_drift
from rasa_moe.align.supervised import DRIFT, SupervisedLoss
from rasa_moe.config import AlignConfig
from rasa_moe.moe import ExpertId, discover, logits_at
from unit.tiny import tiny_model, tiny_pairs, tiny_retain, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WEIGHTS = {"jailbreak": 1.0, "anchor": 1.0, "retain": 1.0, DRIFT: 2.0}


def batch_of(*, retain: int = 4) -> TrainingBatch:
    (batch,) = make_batches(
        TOKENIZER, pairs=tiny_pairs(), retain=tiny_retain(retain), batch_size=8, seed=0, retain_per_pair=2
    )
    return batch


def scores_of(model: Any, batch: TrainingBatch) -> Tensor:
    """Return (B,S,V), everything, the plain way."""
    chats = batch.chats
    with torch.no_grad():
        scores: Tensor = model(input_ids=chats.input_ids, attention_mask=chats.attention_mask).logits
    return scores


def moved(model: Any) -> None:
    with torch.no_grad():
        discover(model).layers[0].experts.down_proj.mul_(-3.0)


def drift_of(loss: SupervisedLoss, batch: TrainingBatch) -> float:
    with torch.no_grad():
        return sum(float(named["loss_drift"]) for _, named in loss(batch, 0) if "loss_drift" in named)


@pytest.mark.parametrize("batch_tokens", [10_000, 50, 1])
def test_it_is_the_variance_of_what_scores_have_gained_on_retained_answers(batch_tokens: int) -> None:
    model, batch = tiny_model(), batch_of()
    loss = SupervisedLoss(model, [batch], weights=WEIGHTS, batch_tokens=batch_tokens)
    assert drift_of(loss, batch) == pytest.approx(0, abs=1e-9)
    before = scores_of(model, batch)
    moved(model)
    gained = scores_of(model, batch) - before
    is_response = predicting(batch.chats)
    is_retained = torch.zeros(len(is_response), dtype=torch.bool)
    is_retained[batch.parts["retain"]] = True
    expected = gained[is_response & is_retained[:, None]].var(dim=-1, correction=0).mean()
    assert expected > 1e-6, "the test needs a model that moved"
    assert drift_of(loss, batch) == pytest.approx(float(expected), rel=1e-4)


def test_it_takes_part_with_its_weight_and_reaches_the_weights() -> None:
    model, batch = tiny_model(), batch_of()
    loss = SupervisedLoss(model, [batch], weights={**WEIGHTS, "anchor": 0.0}, batch_tokens=10_000)
    moved(model)
    (held, of_held), (learned, of_learned) = loss(batch, 0)
    assert held.item() == pytest.approx((of_held["loss_retain"] + 2 * of_held["loss_drift"]).item(), rel=1e-6)
    assert learned.item() == pytest.approx(of_learned["loss_jailbreak"].item(), rel=1e-6)
    of_held["loss_drift"].backward()
    assert discover(model).layers[0].experts.down_proj.grad.abs().max() > 0


@pytest.mark.parametrize("drift", [0.0, 2.0])
def test_parts_without_weight_are_not_forwarded(drift: float) -> None:
    batch = batch_of()
    weights = {"jailbreak": 1.0, "anchor": 0.0, "retain": 0.0, DRIFT: drift}
    loss = SupervisedLoss(tiny_model(), [batch], weights=weights, batch_tokens=10_000)
    forwarded = {part for micro in loss.micro_batches(batch) for part in micro.parts}
    assert forwarded == ({"retain", "jailbreak"} if drift else {"jailbreak"})
    assert sum(len(micro.rows) for micro in loss.micro_batches(batch)) == sum(
        len(batch.parts[part]) for part in forwarded
    )


def test_adding_the_same_to_every_score_is_no_drift() -> None:
    batch = batch_of()
    (micro,) = batch.micro_batches("retain", batch_tokens=10_000)
    scores = torch.randn(int(predicting(micro.chats).sum()), 11)
    base = torch.zeros_like(scores)
    some = float(score_drift(scores, base, batch, micro))
    assert float(score_drift(scores + 7.0, base, batch, micro)) == pytest.approx(some, rel=1e-4)
    assert some > 0


@pytest.mark.parametrize(("retain", "weight"), [(0, 2.0), (4, 0.0)])
def test_with_nothing_retained_or_no_weight_there_is_no_drift_to_count(retain: int, weight: float) -> None:
    model, batch = tiny_model(), batch_of(retain=retain)
    loss = SupervisedLoss(model, [batch], weights={**WEIGHTS, DRIFT: weight}, batch_tokens=10_000)
    ((_, named),) = loss(batch, 0)
    assert "loss_drift" not in named


def test_repair_that_holds_scores_moves_them_less() -> None:
    settings = AlignConfig(rounds=1, repair_epochs=12, router_epochs=0, batch_size=8, expert_lr=3e-2)
    batch = batch_of()
    drift: dict[float, float] = {}
    for weight in (0.0, 30.0):
        model = tiny_model()
        alignment = align(
            model,
            TOKENIZER,
            discover(model),
            pairs=tiny_pairs(),
            retain=tiny_retain(),
            experts=(ExpertId(0, 1), ExpertId(0, 5), ExpertId(1, 2)),
            config=settings.model_copy(update={"drift_weight": weight}),
        )
        loss = SupervisedLoss(model, [batch], weights=WEIGHTS, batch_tokens=10_000)
        alignment.patch.apply(model)
        drift[weight] = drift_of(loss, batch)
    assert 0 < drift[30.0] < 0.7 * drift[0.0]


def test_states_of_another_call_are_scored_last_as_the_model_scores_its_own() -> None:
    model, batch = tiny_model(), batch_of()
    positions = predicting(batch.chats)
    inputs = {"input_ids": batch.chats.input_ids, "attention_mask": batch.chats.attention_mask}
    with torch.no_grad(), logits_at(model, positions) as seen:
        plain = model(**inputs).logits
    with torch.no_grad(), logits_at(model, positions, also=seen[0][:3]):
        both = model(**inputs).logits
    assert torch.allclose(both[:-3], plain, atol=1e-6) and torch.allclose(both[-3:], plain[:3], atol=1e-6)

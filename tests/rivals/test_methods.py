"""What each method is about, against independent references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from models import FAMILIES, padded_batch
from rasa_moe.align.batches import epoch_order
from rasa_moe.align.rivals import RIVALS, Job
from rasa_moe.align.rivals.affinity_experts import affinity_experts
from rasa_moe.align.rivals.random_experts import random_experts
from rasa_moe.align.rivals.selection import base_detection
from rasa_moe.align.rivals.steering import router_bias
from rasa_moe.data.chats import collate, encode_chat
from rasa_moe.errors import ModelError
from rasa_moe.moe import discover, record, steer


def test_full_fine_tuning_is_plain_adamw_on_the_answers(make_job: Callable[..., Job]) -> None:
    job = make_job("full.epochs=2", "full.lr=1e-3", "align.lr_decay=true")
    tuned = RIVALS["full"].train(job).tensors
    model, batches = job.model, job.batches()
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=job.config.align.weight_decay)
    step = 0
    for epoch in range(2):
        for index in epoch_order(len(batches), seed=job.config.seed, epoch=epoch):
            batch = batches[index]
            loss = torch.zeros(())
            for name, rows in batch.parts.items():
                labels = batch.chats.labels[rows]
                inputs = {"input_ids": batch.chats.input_ids, "attention_mask": batch.chats.attention_mask}
                logits = model(**inputs, use_cache=False).logits[rows][:, :-1].flatten(0, 1)
                weight = job.config.align.retain_weight if name == "retain" else 1.0
                loss = loss + weight * torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / (2 * len(batches)))
            step += 1
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), job.config.align.max_grad_norm)
            optimizer.step()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(tuned[key], parameter.detach(), rtol=1e-4, atol=1e-5)


def test_without_the_retain_set_only_jailbreaks_are_learnt(make_job: Callable[..., Job]) -> None:
    job = make_job("full.lr=3e-3", "full.epochs=4")
    with_set, without = RIVALS["full"].train(job).log, RIVALS["full_no_retain"].train(job).log
    for lines, parts in ((with_set, {"jailbreak", "anchor", "recovery", "retain"}), (without, {"jailbreak"})):
        steps = [line for line in lines if "step" in line]
        # What takes no part is not even forwarded.
        assert all(
            {key for key in line if key.startswith("loss_")} == {f"loss_{part}" for part in parts}
            for line in steps
        )
        assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(line["loss"] == pytest.approx(line["loss_jailbreak"]) for line in without if "step" in line)


def test_random_experts_are_matched_layer_by_layer_and_follow_the_seed(make_job: Callable[..., Job]) -> None:
    jobs = [make_job("detect.budget=6", f"seed={seed}", family="qwen3_moe") for seed in (1, 1, 2)]
    detection = base_detection(jobs[0])
    counts = Counter(expert.layer for expert in detection.experts)
    drawn = [random_experts(job, detection) for job in jobs]
    assert all(Counter(expert.layer for expert in experts) == counts for experts in drawn)
    assert drawn[0] == drawn[1] != drawn[2]


def test_affinity_counts_how_often_jailbreak_answers_choose_an_expert(make_job: Callable[..., Job]) -> None:
    job = make_job("detect.budget=4", "detect.span=response")
    shares = dict.fromkeys(job.moe.expert_ids(), 0.0)
    for pair in job.pairs:
        chat = encode_chat(job.tokenizer, pair.jailbreak, pair.jailbreak_answer)
        batch = collate([chat], job.tokenizer.pad_token_id)
        with torch.no_grad(), record(job.moe, job.model, span=batch.spans["response"]) as trace:
            job.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        for expert in shares:
            ids = trace.ids[job.moe.layers[job.moe.row_of(expert.layer)].name]
            shares[expert] += float((ids == expert.expert).any(dim=1).float().mean()) / len(job.pairs)
    chosen = affinity_experts(job)
    assert len(chosen) == 4
    left_out = [share for expert, share in shares.items() if expert not in chosen]
    assert min(shares[expert] for expert in chosen) >= max(left_out) - 1e-6


def test_the_bias_suppresses_positive_and_promotes_negative_discrepancy() -> None:
    delta = torch.tensor([[0.5, -0.2, 0.1, 0.0], [0.3, -0.4, -0.1, 0.2]])
    assert router_bias(delta, share=0.25, strength=3.0).tolist() == [[-3.0, 3.0, 0, 0], [-3.0, 3.0, 0, 0]]
    assert router_bias(delta, share=0.125, strength=1.0).tolist() == [[-1.0, 0, 0, 0], [0, 1.0, 0, 0]]
    # Half of all: there are only three negative and four positive values, and zero is neither.
    half = router_bias(delta, share=0.5, strength=1.0)
    assert half.sign().tolist() == (-delta.sign()).tolist()


def test_steering_shifts_the_logits_and_the_choice(family: str) -> None:
    model = FAMILIES[family]()
    moe, batch = discover(model), padded_batch()
    layer, expert = moe.layers[-1], 1
    with torch.no_grad(), record(moe, model, probabilities=True) as before:
        plain = model(**batch).logits
    zero = torch.zeros(moe.num_layers, moe.num_experts)
    with torch.no_grad(), steer(moe, zero):
        assert torch.equal(model(**batch).logits, plain)
    down, up = zero.clone(), zero.clone()
    down[-1, expert], up[-1, expert] = -2.0, 2.0
    shares = {}
    for name, bias in (("down", down), ("up", up)):
        with torch.no_grad(), record(moe, model, probabilities=True) as trace, steer(moe, bias):
            model(**batch)
        shares[name] = trace.probabilities[layer.name][:, expert]
        earlier = moe.layers[0]
        assert torch.equal(trace.ids[earlier.name], before.ids[earlier.name])
    base = before.probabilities[layer.name][:, expert]
    assert bool((shares["down"] < base).all()) and bool((shares["up"] > base).all())
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, plain)


def test_a_suppressed_expert_is_not_chosen_and_a_promoted_one_always() -> None:
    model = FAMILIES["olmoe"]()
    moe, batch = discover(model), padded_batch()
    for sign in (-1.0, 1.0):
        bias = torch.zeros(moe.num_layers, moe.num_experts)
        bias[:, 3] = sign * 1000
        with torch.no_grad(), record(moe, model) as trace, steer(moe, bias):
            model(**batch)
        for layer in moe.layers:
            chosen = (trace.ids[layer.name] == 3).any(dim=1)
            assert bool(chosen.all()) if sign > 0 else not bool(chosen.any())


def test_steering_of_another_shape_is_refused() -> None:
    moe = discover(FAMILIES["olmoe"]())
    with pytest.raises(ModelError, match=r"shape \(1, 8\).*\(2, 8\)"), steer(moe, torch.zeros(1, 8)):
        pass


def test_router_kl_holds_the_routing_of_the_last_prompt_token(make_job: Callable[..., Job]) -> None:
    ends = []
    for weight in ("1e-9", "30.0"):
        job = make_job(
            "rivals.router_kl.lr=1e-2", "rivals.router_kl.epochs=8", f"rivals.router_kl.kl_weight={weight}"
        )
        ends.append([line["kl"] for line in RIVALS["router_kl"].train(job).log if "step" in line])
    assert ends[0][0] == pytest.approx(ends[1][0])  # the same base model before the first step
    assert ends[1][-1] < ends[0][-1] and ends[1][-1] < ends[1][0]


def test_rerouting_starts_at_the_base_model_and_turns_harmful_answers_away(
    make_job: Callable[..., Job],
) -> None:
    job = make_job("rivals.rerouting.lr=1e-2", "rivals.rerouting.epochs=10")
    steps = [line for line in RIVALS["rerouting"].train(job).log if "step" in line]
    assert steps[0]["loss_jailbreak"] == pytest.approx(1.0, abs=1e-4)
    assert steps[0]["loss_retain"] == pytest.approx(0.0, abs=1e-4)
    assert steps[0]["loss"] == pytest.approx(job.config.rivals.rerouting.weight, rel=1e-3)
    assert steps[-1]["loss_jailbreak"] < 0.5
    # Half way through, a quarter of the weight has moved from rerouting to retaining.
    middle = steps[len(steps) // 2]
    expected = 10.0 * (0.75 * middle["loss_jailbreak"] + 0.25 * middle["loss_retain"])
    assert middle["loss"] == pytest.approx(expected, rel=1e-4)

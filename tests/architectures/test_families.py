"""Every family one adapter claims: found, recorded, replayed, trained by slices and routers, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from architectures.builders import FAMILIES, build, build_meta
from architectures.exceptions import DISK_FUSED, HANDS_ON_MORE
from models import bits, padded_batch
from rasa_moe.align import align
from rasa_moe.config import AlignConfig
from rasa_moe.errors import ModelError
from rasa_moe.moe import (
    ExpertId,
    ExpertSlices,
    LowRankAttention,
    MoeMap,
    attention_projections,
    can_be_entered,
    count_activations,
    discover,
    entered_with,
    export_checkpoint,
    kept_entry,
    record,
    replay,
    router_tensor_names,
    shifted,
    silence,
    trainable_routers,
    watch_routers,
)
from rasa_moe.moe.families import NO_LIVE_REPLAY, NO_SILENCE, ROUTER_WEIGHS_MORE, SCORING, promised_groups
from rasa_moe.moe.slices import freeze, unfreeze
from unit.tiny import tiny_pairs, tiny_retain, tiny_tokenizer

BATCH = padded_batch(num_sequences=2, num_positions=7)
every_family = pytest.mark.parametrize("model_type", sorted(FAMILIES))


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**BATCH, use_cache=False).logits
    return logits[BATCH["attention_mask"].bool()]


def aligned(model: PreTrainedModel) -> PreTrainedModel:
    """Move weights to memory of their own.

    Loaded ones lie where the file has them, and the last bit of a product depends on where a tensor begins.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


def loss_of(model: PreTrainedModel) -> Tensor:
    """Cross-entropy of the model's own logits: a few families take no labels, or add terms of their own."""
    logits = model(**BATCH, use_cache=False).logits[:, :-1].flatten(0, 1)
    labels = BATCH["input_ids"].masked_fill(BATCH["attention_mask"] == 0, -100)[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits.float(), labels)


def two_experts(moe: MoeMap) -> list[ExpertId]:
    """Return the busiest expert of the last MoE layer and of the first, so that each gets a gradient."""
    with count_activations(moe, moe.model) as counts:
        logits_of(moe.model)
    busiest = counts.counts.sum(0).argmax(-1).tolist()
    rows = sorted({0, moe.num_layers - 1})
    return [ExpertId(moe.layers[row].index, busiest[row]) for row in rows]


def test_the_declared_families_are_those_tested() -> None:
    assert FAMILIES.keys() == SCORING.keys()


@every_family
def test_what_is_found_is_what_is_declared(model_type: str) -> None:
    moe = discover(build(model_type))
    assert {layer.scoring for layer in moe.layers} == {SCORING[model_type]}
    assert (moe.num_experts, moe.top_k) == (8, 2)
    assert moe.num_layers + len(moe.dense_layers) == moe.model.config.get_text_config().num_hidden_layers
    on_meta = discover(build_meta(model_type))
    assert on_meta.layers == moe.layers, "doctor reads a model without weights and must see the same"


@every_family
def test_every_tensor_that_selects_experts_counts_as_router(model_type: str) -> None:
    moe = discover(build(model_type))
    tensors = dict((*moe.model.named_parameters(), *moe.model.named_buffers()))
    routers = tuple(f"{layer.router_name}." for layer in moe.layers)
    # Wherever a family keeps its selection bias, it has one of these names.
    wanted = {
        name
        for name in tensors
        if name.startswith(routers) or name.endswith(("e_score_correction_bias", "expert_bias"))
    }
    assert router_tensor_names(moe) == wanted


@every_family
def test_attention_is_found_in_every_layer_that_has_it(model_type: str) -> None:
    moe = discover(build(model_type))
    found = attention_projections(moe)
    matrices = dict(moe.model.named_parameters())
    assert all(matrices[f"{name}.weight"].ndim == 2 for name in found)
    routed = [name for layer in moe.layers for name in (layer.experts_name, layer.router_name)]
    assert not any(name.startswith(f"{other}.") or name == other for name in found for other in routed)
    layers, _, _ = moe.layers[0].decoder_name.rpartition(".")
    numbers = {int(name.removeprefix(f"{layers}.").partition(".")[0]) for name in found}
    # By name, not by class: what every family calls its last projection of attention.
    ends = ("o_proj.weight", "out_proj.weight", "dense.weight", "o_b_proj.weight")
    named = {
        int(name.removeprefix(f"{layers}.").partition(".")[0])
        for name in matrices
        if "attn" in name and name.endswith(ends) and "linear_attn" not in name
    }
    assert numbers >= named and numbers


@every_family
def test_changes_of_attention_are_what_they_merge_to(model_type: str) -> None:
    model = build(model_type)
    moe = discover(model)
    attention = LowRankAttention(moe, rank=2)
    with torch.no_grad():
        for thin in attention.parameters():
            thin.normal_(std=0.05)
    before = logits_of(model)
    with attention:
        added = logits_of(model)
    attention.merge()
    assert float((added - before).abs().max()) > 1e-3
    torch.testing.assert_close(logits_of(model), added, rtol=1e-3, atol=1e-3)


@every_family
def test_the_groups_a_config_promises_are_those_of_the_router(model_type: str) -> None:
    moe = discover(build(model_type))
    groups, used = promised_groups(moe.model.config.get_text_config())
    router = moe.layers[0].router
    assert (groups, used) == (getattr(router, "num_group", 1), getattr(router, "topk_group", 1))


@every_family
def test_recorded_routing_is_what_the_router_said(model_type: str) -> None:
    model = build(model_type)
    moe = discover(model)
    said: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        layer.router.register_forward_hook(
            lambda module, args, output, name=layer.name: said.update({name: (output[1], output[2])})
        )
        for layer in moe.layers
    ]
    real = BATCH["attention_mask"].bool().flatten()
    with record(moe, model, probabilities=True) as trace:
        logits_of(model)
    for handle in handles:
        handle.remove()
    for layer in moe.layers:
        weights, ids = (tensor.reshape(len(real), -1)[real] for tensor in said[layer.name])
        assert torch.equal(trace.ids[layer.name], ids)
        assert torch.equal(trace.weights[layer.name], weights.to(trace.weights[layer.name].dtype))
        probabilities = trace.probabilities[layer.name]
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(ids)))
        assert probabilities.unique(dim=0).shape[0] > 1


@every_family
def test_replay_is_exact_and_does_not_ask_the_router(model_type: str) -> None:
    model = build(model_type)
    moe = discover(model)
    with record(moe, model) as trace:
        logits = logits_of(model)
    with replay(moe, trace):
        assert torch.equal(logits_of(model), logits)
    if model_type in NO_LIVE_REPLAY:
        refusal = pytest.raises(ModelError, match="cannot be forced with live weights")
        with refusal, replay(moe, trace, weights="live"):
            logits_of(model)
    else:
        with replay(moe, trace, weights="live"):
            torch.testing.assert_close(logits_of(model), logits, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for layer in moe.layers:
            for parameter in layer.router.parameters():
                parameter.neg_()
    assert not torch.equal(logits_of(model), logits), "the routers' weights must matter"
    with replay(moe, trace):
        assert torch.equal(logits_of(model), logits) is (model_type not in ROUTER_WEIGHS_MORE)


@every_family
def test_generation_can_be_recorded_and_replayed(model_type: str) -> None:
    model = build(model_type)
    moe = discover(model)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with record(moe, model) as trace:
        tokens = model.generate(**BATCH, **options)
    assert len(trace.calls) == 3
    if model_type not in ROUTER_WEIGHS_MORE:
        with torch.no_grad():
            for layer in moe.layers:
                for parameter in layer.router.parameters():
                    parameter.neg_()
    with replay(moe, trace):
        assert torch.equal(model.generate(**BATCH, **options), tokens)


@every_family
def test_silent_experts_are_never_chosen(model_type: str) -> None:
    model = build(model_type)
    moe = discover(model)
    silent = two_experts(moe)
    if model_type in NO_SILENCE:
        with pytest.raises(ModelError), silence(moe, silent):
            logits_of(model)
        return
    with count_activations(moe, model) as counts, silence(moe, silent):
        logits_of(model)
    assert all(counts.counts[:, moe.row_of(e.layer), e.expert].sum() == 0 for e in silent)
    assert counts.counts.sum() == moe.num_layers * 2 * BATCH["attention_mask"].sum()


@every_family
def test_slices_learn_as_full_training_does_and_move_nothing_else(model_type: str) -> None:
    model = build(model_type)
    moe = discover(model)
    experts = two_experts(moe)
    loss_of(model).backward()
    full = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    before = bits(model)
    # PyTorch multiplies strided activations by another kernel when the weights want a gradient, which slices
    # take from them; the logits to be met are those of frozen weights.
    wanted = freeze(model)
    logits = logits_of(model)
    unfreeze(model, wanted)
    chosen = {moe.layers[row].experts_name: rows for row, rows in moe.by_layer(experts).items()}
    with ExpertSlices(moe, experts) as slices:
        assert torch.equal(logits_of(model), logits)
        optimizer = torch.optim.AdamW(slices.parameters(), lr=1e-2, weight_decay=0.1)
        loss_of(model).backward()
        for name, rows in slices.named_parameters():
            parameter = name.removesuffix("[selected]")
            expected = full[parameter][chosen[parameter.rpartition(".")[0]]]
            torch.testing.assert_close(rows.grad, expected, rtol=1e-4, atol=1e-6)
            assert float(expected.abs().max()) > 0
        optimizer.step()
        slices.merge()
    changed = 0
    for name, tensor in model.state_dict().items():
        rows = chosen.get(name.rpartition(".")[0], [])
        changed += sum(not torch.equal(tensor[row], before[name][row]) for row in rows)
        restored = tensor.clone()
        restored[rows] = before[name][rows]
        assert torch.equal(restored, before[name])
    assert changed == sum(len(rows) for rows in slices.parameters())


@every_family
def test_the_router_stage_moves_routers_only(model_type: str) -> None:
    model = build(model_type)
    moe = discover(model)
    before = bits(model)
    with trainable_routers(moe) as routers, watch_routers(moe, model) as watch:
        optimizer = torch.optim.AdamW(routers, lr=1e-2, weight_decay=0.1)
        logits = model(**BATCH, use_cache=False).logits
        means = watch.mean_probabilities()
        torch.testing.assert_close(means.sum(-1), torch.ones(means.shape[:2]))
        # As in the consistency stage, towards a fixed distribution; the logits reach what that leaves out.
        target = means.detach().flip(-1)
        ((target * (target / means).log()).sum() + 0.1 * logits.square().mean()).backward()
        optimizer.step()
    # Two families hold the selection bias, which never learns by gradient, as a parameter.
    names = {
        name
        for layer in moe.layers
        for name, parameter in layer.router.named_parameters(layer.router_name)
        if parameter.requires_grad
    }
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == names


@every_family
def test_export_keeps_the_layout_and_changes_only_what_was_trained(model_type: str, tmp_path: Path) -> None:
    model = build(model_type)
    moe = discover(model)
    experts = two_experts(moe)
    export_checkpoint(model, None, tmp_path / "base")
    with ExpertSlices(moe, experts) as slices:
        for rows in slices.parameters():
            rows.data.add_(0.5)
        slices.merge()
    export_checkpoint(model, None, tmp_path / "tuned")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", dtype=torch.float32).eval()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in bits(model).items())
    assert torch.equal(logits_of(aligned(loaded)), logits_of(model))
    export_checkpoint(loaded, None, tmp_path / "again")
    base, tuned, again = (
        load_file(tmp_path / name / "model.safetensors") for name in ("base", "tuned", "again")
    )
    assert base.keys() == tuned.keys() == again.keys()
    assert all(torch.equal(tuned[name], again[name]) for name in tuned)
    differing = {name for name in base if not torch.equal(base[name], tuned[name])}
    if model_type in DISK_FUSED:
        assert len(differing) == len(slices.parameters())
        assert all(tuned[name].shape[0] == moe.num_experts for name in differing)
    else:
        # Gate, up and down of each trained expert under the expert's own number; a few have no gate.
        assert len(differing) in {3 * len(experts), 2 * len(experts)}
        numbers = [(f".{expert.layer}.", f".{expert.expert}.") for expert in experts]
        assert all(any(layer in name and number in name for layer, number in numbers) for name in differing)
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert config["model_type"] == model.config.model_type


@every_family
def test_hidden_states_are_shifted_and_calls_begin_late_only_where_that_changes_nothing(
    model_type: str,
) -> None:
    model = build(model_type)
    moe = discover(model)
    plain = logits_of(model)
    with torch.no_grad(), kept_entry(moe, model) as entries:
        logits_of(model)
    width = entries[0].shape[2:].numel()
    positions = torch.zeros_like(BATCH["attention_mask"], dtype=torch.bool)
    positions[0, -1] = True
    shift = shifted(moe, model, positions, torch.ones(1, width))
    with shift:
        moved = logits_of(model)
    assert not torch.equal(moved, plain)
    assert can_be_entered(moe, model) == (model_type not in HANDS_ON_MORE)
    if model_type not in HANDS_ON_MORE:
        with entered_with(moe, model, entries[0]):
            assert torch.equal(logits_of(model), plain)
        with entered_with(moe, model, entries[0]), shifted(moe, model, positions, torch.ones(1, width)):
            assert torch.equal(logits_of(model), moved)


def test_layers_that_read_the_states_of_blocks_are_not_skipped() -> None:
    """Seen only where there are more layers than one block has."""
    model = build("inkling2_text", num_hidden_layers=6, n_layers_per_attn_res_block=2)
    assert not can_be_entered(discover(model), model)


@pytest.mark.parametrize("model_type", sorted(HANDS_ON_MORE))
def test_models_whose_layers_hand_on_more_are_repaired(model_type: str) -> None:
    model = build(model_type)
    before = bits(model)
    moe = discover(model)
    aligned = align(
        model,
        tiny_tokenizer(),
        moe,
        pairs=tiny_pairs(4),
        retain=tiny_retain(2),
        experts=two_experts(moe),
        config=AlignConfig(rounds=1, router_epochs=0, batch_size=4, retain_per_pair=1),
    )
    assert aligned.log and aligned.patch.after
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

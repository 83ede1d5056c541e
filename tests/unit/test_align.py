"""The alternation on a tiny model: what moves and what does not, stopping, killing and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from models import bits
from rasa_moe.align import Alignment, align
from rasa_moe.align.alternation import phases_of
from rasa_moe.align.batches import make_batches
from rasa_moe.align.losses import routing_divergence
from rasa_moe.align.repair import ExpertRepair
from rasa_moe.align.supervised import DRIFT, part_weights
from rasa_moe.config import AlignConfig
from rasa_moe.errors import RunError, TrainingError
from rasa_moe.moe import (
    ExpertId,
    ExpertPatch,
    MoeMap,
    attention_weights,
    discover,
    record,
    sha256_tensor,
    watch_routers,
)
from unit.tiny import tiny_model, tiny_pairs, tiny_retain, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EXPERTS = (ExpertId(0, 1), ExpertId(0, 5), ExpertId(1, 2))
CONFIG = AlignConfig(
    rounds=2,
    repair_epochs=1,
    router_epochs=1,
    batch_size=4,
    expert_lr=3e-2,
    router_lr=1e-2,
    weight_decay=0.1,
    early_stop_loss=None,
    router_span="response",
)
# Every weight of something beside the jailbreaks' refusals and the pairs' routing.
PAPER = {name: 0.0 for name in AlignConfig.model_fields if name.endswith("_weight")}
STEPS_AN_EPOCH = 2  # six pairs, four a batch


def run(model: PreTrainedModel, moe: MoeMap, config: AlignConfig = CONFIG, **options: Any) -> Alignment:
    settings: dict[str, Any] = {
        "pairs": tiny_pairs(),
        "retain": tiny_retain(),
        "experts": EXPERTS,
        "config": config,
        **options,
    }
    return align(model, TOKENIZER, moe, **settings)


def hashes(alignment: Alignment) -> dict[str, str]:
    return {name: sha256_tensor(tensor) for name, tensor in alignment.patch.after.items()}


def is_unchanged(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def steps_of(alignment: Alignment, phase: str) -> list[dict[str, Any]]:
    return [line for line in alignment.log if "step" in line and line["phase"] == phase]


class Kill:
    """Interrupt at the given step, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self._left = step

    def __call__(self, label: str, done: int, total: int) -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("rank", [None, 8])
def test_only_the_chosen_experts_the_routers_and_attention_move(
    model: PreTrainedModel, moe: MoeMap, rank: int | None
) -> None:
    before = bits(model)
    alignment = run(model, moe, CONFIG.model_copy(update={"attention_rank": rank}))
    assert is_unchanged(model, before), "the model must be handed back as the base model"
    alignment.patch.apply(model)
    rows = {
        f"{layer.experts_name}.{tensor}": [expert.expert for expert in EXPERTS if expert.layer == layer.index]
        for layer in moe.layers
        for tensor in ("gate_up_proj", "down_proj")
    }
    wholes = {f"{layer.router_name}.weight" for layer in moe.layers}
    wholes |= set() if rank is None else set(attention_weights(moe))
    assert alignment.patch.after.keys() == rows.keys() | wholes
    for name, tensor in model.state_dict().items():
        if name in wholes:
            assert not torch.equal(tensor, before[name])
            continue
        moved = [row for row in range(len(tensor)) if not torch.equal(tensor[row], before[name][row])]
        assert moved == rows.get(name, []), name
    alignment.patch.revert(model)
    assert is_unchanged(model, before)


def test_the_model_is_left_able_to_do_what_it_could(model: PreTrainedModel, moe: MoeMap) -> None:
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    implementation = model.get_experts_implementation()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    run(model, moe, CONFIG.model_copy(update={"gradient_checkpointing": True, "fixed_routing": "replay"}))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.get_experts_implementation() == implementation
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert not model.is_activation_checkpointing
    assert not any(module.training for module in model.modules())
    assert not any("_gradient_checkpointing_func" in vars(module) for module in model.modules())


def test_repair_learns_the_refusals_and_consistency_the_routing(model: PreTrainedModel, moe: MoeMap) -> None:
    epochs = {"rounds": 1, "repair_epochs": 15, "router_epochs": 15}
    config = CONFIG.model_copy(update={**PAPER, **epochs, "attention_rank": None})
    alignment = run(model, moe, config)
    repair = [line["loss_jailbreak"] for line in steps_of(alignment, "repair")]
    router = [line["kl"] for line in steps_of(alignment, "router")]
    assert repair[-1] < 0.5 * repair[0]
    assert sum(router[-2:]) < 0.7 * sum(router[:2])
    moved = [line for line in alignment.log if line.get("event") == "moved"]
    assert [line["phase"] for line in moved] == ["repair"] * 15 + ["router"] * 15
    assert all(value > 0 for line in moved for value in line["relative_change"].values())


def test_the_routing_of_what_is_retained_is_held(model: PreTrainedModel, moe: MoeMap) -> None:
    (batch,) = make_batches(TOKENIZER, pairs=tiny_pairs(), retain=tiny_retain(), batch_size=8, seed=0)

    def routing(part: str) -> torch.Tensor:
        chats = batch.part(part)
        with torch.no_grad(), watch_routers(moe, model) as watch:
            model(input_ids=chats.input_ids, attention_mask=chats.attention_mask, use_cache=False)
        return watch.mean_probabilities(chats.spans["response"])

    kept = {part: routing(part) for part in ("anchor", "retain")}
    gap = float(routing_divergence(kept["anchor"], routing("jailbreak")))
    drift = {}
    for weight in (0.0, 10.0):
        only_routers = {"rounds": 1, "repair_epochs": 0, "router_epochs": 15, "router_lr": 2e-2}
        config = CONFIG.model_copy(update={**only_routers, "router_retain_weight": weight})
        alignment = run(model, moe, config)
        alignment.patch.apply(model)
        # Towards the anchors' routing of now: without weight theirs drifts as well.
        assert float(routing_divergence(routing("anchor"), routing("jailbreak"))) < 0.3 * gap
        drift[weight] = [float(routing_divergence(before, routing(part))) for part, before in kept.items()]
        alignment.patch.revert(model)
    assert all(held < 0.3 * free for held, free in zip(drift[10.0], drift[0.0], strict=True)), drift


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(moe: MoeMap) -> None:
    def patch_of(seed: int) -> dict[str, str]:
        model = tiny_model()
        return hashes(run(model, discover(model), seed=seed))

    assert patch_of(0) == patch_of(0) != patch_of(1)


@pytest.mark.parametrize("routing", ["frozen", "replay"])
@pytest.mark.parametrize("step", [1, STEPS_AN_EPOCH + 1, 3 * STEPS_AN_EPOCH, 4 * STEPS_AN_EPOCH])
def test_a_killed_alignment_resumes_to_the_same_patch(
    model: PreTrainedModel, moe: MoeMap, tmp_path: Path, step: int, routing: str
) -> None:
    config = CONFIG.model_copy(update={"fixed_routing": routing})
    undisturbed = run(model, moe, config)
    before, file = bits(model), tmp_path / "rasa.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(model, moe, config, checkpoint_path=file, progress=Kill(step))
    assert is_unchanged(model, before), "Ctrl-C must leave the base model"
    counted: list[int] = []
    resumed = run(
        model, moe, config, checkpoint_path=file, progress=lambda label, done, total: counted.append(done)
    )
    assert hashes(resumed) == hashes(undisturbed)
    assert resumed.log == undisturbed.log
    finished = (step - 1) // STEPS_AN_EPOCH * STEPS_AN_EPOCH  # whole epochs before the kill
    assert counted == list(range(finished + 1, 4 * STEPS_AN_EPOCH + 1))


def test_a_checkpoint_of_other_data_or_settings_is_refused(
    model: PreTrainedModel, moe: MoeMap, tmp_path: Path
) -> None:
    file = tmp_path / "rasa.safetensors"
    run(model, moe, checkpoint_path=file)
    pairs = tiny_pairs()
    changed = [replace(pairs[0], anchor_answer="sorry no no"), *pairs[1:]]
    for options in (
        {"pairs": changed},
        {"retain": tiny_retain(3)},
        {"seed": 1},
        {"experts": EXPERTS[:2]},
        {"config": CONFIG.model_copy(update={"expert_lr": 1e-2})},
    ):
        before = bits(model)
        with pytest.raises(RunError, match="other settings or data"):
            run(model, moe, checkpoint_path=file, **options)
        assert is_unchanged(model, before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_replay_holds_the_routing_of_the_base_and_frozen_does_not(
    model: PreTrainedModel, moe: MoeMap, checkpointing: bool
) -> None:
    (batch,) = make_batches(TOKENIZER, pairs=tiny_pairs(), retain=tiny_retain(), batch_size=8, seed=0)
    fixed = {
        kind: ExpertRepair(model, moe, [batch], config=CONFIG.model_copy(update={"fixed_routing": kind}))
        for kind in ("frozen", "replay")
    }

    def routing_in(kind: str) -> dict[str, torch.Tensor]:
        with torch.no_grad(), record(moe, model) as trace:
            list(fixed[kind](batch, 0))
        return trace.ids

    base = routing_in("frozen")
    assert all(torch.equal(ids, base[name]) for name, ids in routing_in("replay").items())
    with torch.no_grad():
        moe.layers[0].experts.down_proj.mul_(-3.0)  # what repair does to a first layer, and more
    last = moe.layers[-1].name
    assert not torch.equal(routing_in("frozen")[last], base[last])
    assert all(torch.equal(ids, base[name]) for name, ids in routing_in("replay").items())


def test_replay_and_frozen_routing_lead_to_different_repairs(model: PreTrainedModel, moe: MoeMap) -> None:
    replayed = CONFIG.model_copy(update={"fixed_routing": "replay"})
    assert hashes(run(model, moe)) != hashes(run(model, moe, replayed))


@pytest.mark.parametrize("phase", ["repair", "router"])
def test_a_loss_that_is_no_number_is_reported_and_leaves_the_base(
    model: PreTrainedModel, moe: MoeMap, phase: str
) -> None:
    before = bits(model)
    rate = {"repair": "expert_lr", "router": "router_lr"}[phase]
    sentence = rf"in rasa {phase}, round 0; lower the learning rate \(now \S+e\+\d\d\)"
    with pytest.raises(TrainingError, match=sentence):
        run(model, moe, CONFIG.model_copy(update={rate: 1e30, "repair_epochs": 2, "router_epochs": 2}))
    assert is_unchanged(model, before)


EPOCHS = CONFIG.model_copy(update={"repair_epochs": 5})


def repair_epoch_means(alignment: Alignment, *, round_number: int) -> list[float]:
    losses = [line["loss"] for line in steps_of(alignment, "repair") if line["round"] == round_number]
    return [
        sum(losses[start : start + STEPS_AN_EPOCH]) / STEPS_AN_EPOCH
        for start in range(0, len(losses), STEPS_AN_EPOCH)
    ]


def test_repair_ends_after_the_first_epoch_whose_mean_loss_is_below_the_limit(
    model: PreTrainedModel, moe: MoeMap
) -> None:
    full = run(model, moe, EPOCHS)
    means = repair_epoch_means(full, round_number=0)
    assert len(means) == 5 and means[0] > means[1] > means[2] > means[3], "the test needs a falling loss"
    limit = (means[1] + means[2]) / 2  # the third epoch is the first below it
    stopped = run(model, moe, EPOCHS.model_copy(update={"early_stop_loss": limit}))
    assert repair_epoch_means(stopped, round_number=0) == means[:3]
    ended = [line for line in stopped.log if line.get("event") == "ended"]
    assert (ended[0]["phase"], ended[0]["round"], ended[0]["mean_loss"]) == ("repair", 0, means[2])
    # The second round begins below the limit already, and the router epochs are not concerned.
    assert len(repair_epoch_means(stopped, round_number=1)) == 1
    assert len(steps_of(stopped, "router")) == 2 * STEPS_AN_EPOCH


def test_a_limit_that_is_never_reached_changes_nothing(model: PreTrainedModel, moe: MoeMap) -> None:
    never = EPOCHS.model_copy(update={"early_stop_loss": 1e-9})
    full, limited = run(model, moe, EPOCHS), run(model, moe, never)
    assert hashes(full) == hashes(limited) and full.log == limited.log


@pytest.mark.parametrize("step", [1, 3, 4])
def test_an_early_end_is_remembered_over_a_kill(
    model: PreTrainedModel, moe: MoeMap, tmp_path: Path, step: int
) -> None:
    config = EPOCHS.model_copy(update={"early_stop_loss": 1e9})  # one repair epoch a round
    undisturbed = run(model, moe, config)
    assert len(steps_of(undisturbed, "repair")) == 2 * STEPS_AN_EPOCH
    file = tmp_path / "rasa.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(model, moe, config, checkpoint_path=file, progress=Kill(step))
    resumed = run(model, moe, config, checkpoint_path=file)
    assert hashes(resumed) == hashes(undisturbed) and resumed.log == undisturbed.log


@pytest.mark.parametrize("routing", ["frozen", "replay"])
def test_gradient_checkpointing_runs_layers_again_and_changes_no_bit(
    model: PreTrainedModel, moe: MoeMap, routing: str
) -> None:
    runs = {"forward": 0}

    def count(*_: Any) -> None:
        runs["forward"] += torch.is_grad_enabled()

    handle = moe.layers[0].experts.register_forward_pre_hook(count)
    config = CONFIG.model_copy(update={"fixed_routing": routing})
    plain = run(model, moe, config)
    once = runs.pop("forward")
    runs["forward"] = 0
    saving = run(model, moe, config.model_copy(update={"gradient_checkpointing": True}))
    handle.remove()
    # A step of repair is two passes: what is held, and the rest. Each pass runs the layer once more in
    # backward; the targets of consistency need no gradient.
    assert (once, runs["forward"]) == (6 * STEPS_AN_EPOCH, 12 * STEPS_AN_EPOCH)
    assert hashes(saving) == hashes(plain)


def test_with_every_weight_at_zero_only_jailbreaks_and_their_routing_are_learned(
    model: PreTrainedModel, moe: MoeMap
) -> None:
    assert {"anchor_weight", "retain_weight"} <= PAPER.keys()
    paper = run(model, moe, CONFIG.model_copy(update=PAPER))
    assert all(line["loss"] == line["loss_jailbreak"] for line in steps_of(paper, "repair"))
    assert all(line["loss"] == line["kl"] for line in steps_of(paper, "router"))


def test_the_loss_of_repair_is_the_weighted_sum_of_its_parts(model: PreTrainedModel, moe: MoeMap) -> None:
    config = CONFIG.model_copy(update={"anchor_weight": 0.5, "retain_weight": 2.0, "drift_weight": 0.25})
    weights = {**part_weights(config), DRIFT: 0.25}
    assert (weights["jailbreak"], weights["anchor"], weights["retain"]) == (1.0, 0.5, 2.0)
    for line in steps_of(run(model, moe, config), "repair"):
        parts = {name: line[f"loss_{name}"] for name in weights if f"loss_{name}" in line}
        assert parts.keys() >= {"jailbreak", "anchor", "retain", DRIFT}
        expected = sum(weights[name] * loss for name, loss in parts.items())
        assert line["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("base_bits", "near"), [(8, 0.05), (4, 0.5)])
def test_a_base_of_few_bits_leads_to_nearly_the_same_repair_and_comes_back(
    model: PreTrainedModel, moe: MoeMap, base_bits: int, near: float
) -> None:
    before = bits(model)
    exact = run(model, moe)
    rounded = run(model, moe, CONFIG.model_copy(update={"base_bits": base_bits}))
    assert is_unchanged(model, before)
    assert hashes(rounded).keys() == hashes(exact).keys() and hashes(rounded) != hashes(exact)
    for one, other in zip(steps_of(exact, "repair"), steps_of(rounded, "repair"), strict=True):
        assert one["loss"] != other["loss"] == pytest.approx(one["loss"], rel=near)


def test_a_killed_alignment_on_an_8_bit_base_resumes_to_the_same_patch(
    model: PreTrainedModel, moe: MoeMap, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"base_bits": 8})
    undisturbed = run(model, moe, config)
    before, file = bits(model), tmp_path / "rasa.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(model, moe, config, checkpoint_path=file, progress=Kill(3 * STEPS_AN_EPOCH))
    assert is_unchanged(model, before), "Ctrl-C must leave the base model"
    assert hashes(run(model, moe, config, checkpoint_path=file)) == hashes(undisturbed)


def test_a_rank_limits_the_change_of_every_matrix(
    model: PreTrainedModel, moe: MoeMap, tmp_path: Path
) -> None:
    before = bits(model)
    config = CONFIG.model_copy(update={"expert_rank": 8, "weight_decay": 0.0})
    undisturbed = run(model, moe, config)
    assert is_unchanged(model, before)
    changed = {
        name: tensor - undisturbed.patch.before[name]
        for name, tensor in undisturbed.patch.after.items()
        if "experts" in name
    }
    assert changed and all(change.abs().max() > 1e-4 for change in changed.values())
    ranks = {int(torch.linalg.matrix_rank(change, rtol=1e-3).max()) for change in changed.values()}
    assert max(ranks) <= 8 < min(min(change.shape[1:]) for change in changed.values())
    assert hashes(run(model, moe, config, seed=1)) != hashes(undisturbed)
    file = tmp_path / "rasa.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(model, moe, config, checkpoint_path=file, progress=Kill(3 * STEPS_AN_EPOCH))
    assert hashes(run(model, moe, config, checkpoint_path=file)) == hashes(undisturbed)


def test_attention_learns_beside_the_experts_in_changes_of_its_rank(
    model: PreTrainedModel, moe: MoeMap, tmp_path: Path
) -> None:
    before = bits(model)
    config = CONFIG.model_copy(update={"attention_rank": 2, "weight_decay": 0.0})
    undisturbed = run(model, moe, config)
    assert is_unchanged(model, before)
    patch = undisturbed.patch
    names = attention_weights(moe)
    assert names == patch.manifest["attention"]
    changes = {name: patch.after[name] - patch.before[name] for name in names}
    assert all(int(torch.linalg.matrix_rank(change, rtol=1e-3)) in (1, 2) for change in changes.values())
    assert f"{len(names)} projections of attention, moved by" in patch.describe()
    moved = [line["relative_change"] for line in undisturbed.log if line.get("event") == "moved"]
    assert [set(change) for change in moved] == [{"experts", "attention"}, {"routers"}] * 2
    assert hashes(run(model, moe, config)) == hashes(undisturbed)
    experts = {name for name in patch.after if "experts" in name}
    without = run(model, moe, config.model_copy(update={"attention_rank": None}))
    assert experts == {name for name in without.patch.after if "experts" in name}
    assert "attention" not in without.patch.manifest
    file = tmp_path / "rasa.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(model, moe, config, checkpoint_path=file, progress=Kill(3 * STEPS_AN_EPOCH))
    assert is_unchanged(model, before)
    assert hashes(run(model, moe, config, checkpoint_path=file)) == hashes(undisturbed)
    patch.save(tmp_path / "patch")
    ExpertPatch.load(tmp_path / "patch").apply(model)
    assert {name for name, tensor in bits(model).items() if not torch.equal(tensor, before[name])} == set(
        patch.after
    )
    patch.revert(model)
    assert is_unchanged(model, before)


def test_without_router_epochs_the_routers_keep_their_bits(model: PreTrainedModel, moe: MoeMap) -> None:
    alignment = run(model, moe, CONFIG.model_copy(update={"router_epochs": 0}))
    assert not any("gate.weight" in name for name in alignment.patch.after)
    assert not steps_of(alignment, "router")


def test_weights_and_steps_too_small_for_bfloat16_are_kept_in_fp32() -> None:
    """A step of 1e-5 on a weight near 0.3 rounds to nothing in bfloat16, whose spacing there is 2e-3."""
    model = tiny_model().to(torch.bfloat16)
    config = CONFIG.model_copy(
        update={
            "expert_lr": 1e-5,
            "router_lr": 1e-5,
            "rounds": 5,
            "weight_decay": 0.0,
            "attention_rank": None,
        }
    )
    alignment = run(model, discover(model), config)
    for line in alignment.log:
        if line.get("event") == "moved":
            (change,) = line["relative_change"].values()
            assert 1e-7 < change < 1e-3
    assert alignment.patch.after and all(t.dtype == torch.bfloat16 for t in alignment.patch.after.values())


def test_the_plan_alternates_repair_and_routers() -> None:
    config = CONFIG.model_copy(update={"rounds": 2, "repair_epochs": 2, "router_epochs": 1})
    phases = phases_of(config)
    assert phases_of(config, "router") == [phase for phase in phases if phase.kind == "router"]
    assert [(phase.kind, phase.round_number, phase.epoch) for phase in phases] == [
        ("repair", 0, 0),
        ("repair", 0, 1),
        ("router", 0, 0),
        ("repair", 1, 0),
        ("repair", 1, 1),
        ("router", 1, 0),
    ]

"""Routing made consistent before experts are chosen: under which routing they are read and repaired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from models import bits
from rasa_moe.align import Alignment, align, make_consistent, rasa, routing_settings
from rasa_moe.config import AlignConfig, Config, DetectConfig
from rasa_moe.data.chats import encode_chat
from rasa_moe.detect.stage import activation_rates, detect
from rasa_moe.errors import RunError
from rasa_moe.moe import ExpertPatch, MoeMap, sha256_tensor
from unit.tiny import tiny_pairs, tiny_retain, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ALIGN = AlignConfig(
    rounds=2, batch_size=2, expert_lr=3e-2, router_lr=2e-2, router_span="response", early_stop_loss=None
)
CONFIG = Config(align=ALIGN, detect=DetectConfig(budget=3, span="response", bootstrap=20))
ROWS: dict[str, Any] = {"pairs": tiny_pairs(), "retain": tiny_retain()}
STEPS_AN_EPOCH = 3  # six pairs, two a batch


def consistent(model: PreTrainedModel, moe: MoeMap, config: AlignConfig = ALIGN, **options: Any) -> Alignment:
    made = make_consistent(model, TOKENIZER, moe, config=config, **ROWS, **options)
    assert made is not None
    return made


def with_align(**changes: Any) -> Config:
    return CONFIG.model_copy(update={"align": ALIGN.model_copy(update=changes)})


def hashes(patch: ExpertPatch) -> dict[str, str]:
    return {name: sha256_tensor(tensor) for name, tensor in patch.after.items()}


def routers_of(model: PreTrainedModel, moe: MoeMap) -> dict[str, torch.Tensor]:
    return {
        f"{layer.router_name}.weight": layer.router.weight.detach().clone()  # type: ignore[union-attr]
        for layer in moe.layers
    }


def test_consistency_trains_every_router_and_nothing_else(model: PreTrainedModel, moe: MoeMap) -> None:
    before = bits(model)
    made = consistent(model, moe)
    assert made.patch.after.keys() == routers_of(model, moe).keys() and made.patch.experts == ()
    assert {line["phase"] for line in made.log} == {"router"}
    kl = [line["kl"] for line in made.log if "step" in line]
    assert len(kl) == 2 * STEPS_AN_EPOCH and kl[-1] < kl[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("changes", [{"order": "experts_first"}, {"router_epochs": 0}])
def test_other_orders_leave_the_routers_for_later(
    model: PreTrainedModel, moe: MoeMap, changes: dict[str, Any]
) -> None:
    config = ALIGN.model_copy(update=changes)
    assert make_consistent(model, TOKENIZER, moe, config=config, **ROWS) is None
    repaired = rasa(model, TOKENIZER, moe, config=with_align(**changes), **ROWS)
    phases = [line["phase"] for line in repaired.log if line.get("event") == "moved"]
    assert phases == (["repair", "router"] * 2 if "order" in changes else ["repair"] * 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"both_routings": False},
        {"fixed_routing": "replay"},
        {"repair_epochs": 3},
        {"expert_lr": 1e-4},
        {"expert_rank": 8},
        {"attention_rank": 2},
        {"retain_weight": 0.0},
        {"drift_weight": 0.0},
        {"anchor_weight": 0.0},
        {"early_stop_loss": 1e3},
    ],
    ids=str,
)
def test_settings_of_repair_alone_leave_the_consistent_routing_as_it_is(
    model: PreTrainedModel, moe: MoeMap, changes: dict[str, Any]
) -> None:
    config = ALIGN.model_copy(update=changes)
    assert config != ALIGN and routing_settings(config) == routing_settings(ALIGN)
    assert hashes(consistent(model, moe, config).patch) == hashes(consistent(model, moe).patch)


@pytest.mark.parametrize(
    "changes", [{"router_lr": 1e-3}, {"kl": "reverse"}, {"rounds": 3}, {"recovery_weight": 0.0}], ids=str
)
def test_settings_that_decide_the_routing_are_told_apart(changes: dict[str, Any]) -> None:
    assert routing_settings(ALIGN.model_copy(update=changes)) != routing_settings(ALIGN)
    assert routing_settings(ALIGN.model_copy(update={"order": "experts_first"})) is None


def test_routing_that_is_there_is_not_made_again(model: PreTrainedModel, moe: MoeMap, tmp_path: Path) -> None:
    consistent(model, moe).patch.save(tmp_path / "routing")
    routing = ExpertPatch.load(tmp_path / "routing")
    whole = rasa(model, TOKENIZER, moe, config=CONFIG, **ROWS)
    repaired = rasa(model, TOKENIZER, moe, config=CONFIG, routing=routing, **ROWS)
    assert hashes(repaired.patch) == hashes(whole.patch)
    assert repaired.log == tuple(line for line in whole.log if line["phase"] == "repair")


def test_a_patch_put_on_is_taken_off_bit_for_bit_also_after_a_failure(
    model: PreTrainedModel, moe: MoeMap
) -> None:
    before, patch = bits(model), consistent(model, moe).patch
    with patch.put_on(model):
        for name, tensor in routers_of(model, moe).items():
            assert torch.equal(tensor, patch.after[name]) and not torch.equal(tensor, before[name])
    with pytest.raises(KeyboardInterrupt), patch.put_on(model):
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_experts_are_chosen_by_the_mean_over_both_routings(model: PreTrainedModel, moe: MoeMap) -> None:
    patch = consistent(model, moe, ALIGN.model_copy(update={"router_lr": 0.3})).patch
    chats = [encode_chat(TOKENIZER, pair.jailbreak, pair.jailbreak_answer) for pair in tiny_pairs()]

    def rates() -> torch.Tensor:
        return activation_rates(model, TOKENIZER, moe, chats=chats, span="response").double().mean(dim=0)

    base = rates()
    patch.apply(model)
    routed = rates()
    patch.revert(model)
    assert not torch.allclose(base, routed), "the test needs routers that moved"

    def found(**options: Any) -> torch.Tensor:
        return detect(
            model, TOKENIZER, moe, pairs=tiny_pairs(), config=CONFIG.detect, **options
        ).jailbreak_rates

    torch.testing.assert_close(found(), base)
    torch.testing.assert_close(found(routing=patch), (base + routed) / 2)
    torch.testing.assert_close(found(routing=patch, both_routings=False), routed)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("fixed", ["frozen", "replay"])
def test_refusals_meet_the_routers_of_the_base_in_every_other_step(
    model: PreTrainedModel, moe: MoeMap, monkeypatch: pytest.MonkeyPatch, both: bool, fixed: str
) -> None:
    base, patch = routers_of(model, moe), consistent(model, moe).patch
    passes: list[str] = []
    backward = torch.Tensor.backward

    def noted(loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        now = routers_of(model, moe)
        kinds = [
            kind
            for kind, routers in (("base", base), ("consistent", patch.after))
            if all(torch.equal(now[name], routers[name]) for name in now)
        ]
        assert len(kinds) == 1, "the test needs routers that moved"
        passes.extend(kinds)
        backward(loss, *arguments, **options)

    config = ALIGN.model_copy(update={"both_routings": both, "fixed_routing": fixed})
    experts = detect(model, TOKENIZER, moe, pairs=tiny_pairs(), config=CONFIG.detect).experts
    monkeypatch.setattr(torch.Tensor, "backward", noted)
    align(model, TOKENIZER, moe, experts=experts, routing=patch, config=config, **ROWS)
    # Two passes a step: what is held, under the routers that stay, and the rest. The second round begins with
    # the other routing.
    held, rest = passes[0::2], passes[1::2]
    assert len(passes) == 2 * 2 * STEPS_AN_EPOCH and set(held) == {"consistent"}
    in_turn = ["consistent", "base", "consistent", "base", "consistent", "base"]
    assert rest == (in_turn if both else ["consistent"] * 6)


def test_an_interrupt_between_passes_leaves_the_routers_of_the_base(
    model: PreTrainedModel, moe: MoeMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, patch = bits(model), consistent(model, moe).patch
    experts = detect(model, TOKENIZER, moe, pairs=tiny_pairs(), config=CONFIG.detect).experts

    def interrupted(loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.Tensor, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        align(model, TOKENIZER, moe, experts=experts, routing=patch, config=ALIGN, **ROWS)
    # While the traceback still holds the frames of the step.
    assert caught.value.__traceback__ is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_replay_forces_the_routing_of_each_step(model: PreTrainedModel, moe: MoeMap) -> None:
    patch = consistent(model, moe, ALIGN.model_copy(update={"router_lr": 0.3})).patch
    experts = detect(model, TOKENIZER, moe, pairs=tiny_pairs(), config=CONFIG.detect).experts
    made = {}
    for fixed in ("frozen", "replay"):
        # A shift is made for the routing that is fixed, so with one the two differ from the first step on.
        config = ALIGN.model_copy(update={"fixed_routing": fixed, "context_shift": 0.0})
        repair = align(model, TOKENIZER, moe, experts=experts, routing=patch, config=config, **ROWS)
        made[fixed] = [line["loss_jailbreak"] for line in repair.log if "step" in line]
    # Nothing has changed yet in the first step, nor, but for one step, in the second, whose routing differs.
    assert made["replay"][0] == pytest.approx(made["frozen"][0], rel=1e-5)
    assert made["replay"][1] == pytest.approx(made["frozen"][1], rel=0.05)


def test_the_repair_holds_the_consistent_routers_and_leaves_the_base(
    model: PreTrainedModel, moe: MoeMap
) -> None:
    before = bits(model)
    repaired = rasa(model, TOKENIZER, moe, config=CONFIG, **ROWS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    routing = consistent(model, moe).patch
    assert all(torch.equal(repaired.patch.after[name], tensor) for name, tensor in routing.after.items())
    assert repaired.patch.experts == tuple(sorted(repaired.detection.experts))
    phases = [line["phase"] for line in repaired.log if line.get("event") == "moved"]
    assert phases == ["router"] * 2 + ["repair"] * 2
    repaired.patch.apply(model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == repaired.patch.after.keys()
    repaired.patch.revert(model)
    assert hashes(rasa(model, TOKENIZER, moe, config=CONFIG, **ROWS).patch) == hashes(repaired.patch)


@pytest.mark.parametrize("step", [2, STEPS_AN_EPOCH + 1, 2 * STEPS_AN_EPOCH + 4, 3 * STEPS_AN_EPOCH + 4])
def test_a_killed_run_of_all_phases_resumes_to_the_same_patch(
    model: PreTrainedModel, moe: MoeMap, tmp_path: Path, step: int
) -> None:
    before, file = bits(model), tmp_path / "rasa.safetensors"
    undisturbed = rasa(model, TOKENIZER, moe, config=CONFIG, **ROWS)
    left = iter(range(step, -1, -1))

    def kill(label: str, done: int, total: int) -> None:
        if next(left) == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rasa(model, TOKENIZER, moe, config=CONFIG, checkpoint_path=file, progress=kill, **ROWS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    resumed = rasa(model, TOKENIZER, moe, config=CONFIG, checkpoint_path=file, **ROWS)
    assert hashes(resumed.patch) == hashes(undisturbed.patch) and resumed.log == undisturbed.log


def test_a_checkpoint_under_another_routing_is_refused(
    model: PreTrainedModel, moe: MoeMap, tmp_path: Path
) -> None:
    file = tmp_path / "rasa.safetensors"
    experts = detect(model, TOKENIZER, moe, pairs=tiny_pairs(), config=CONFIG.detect).experts
    options: dict[str, Any] = {"experts": experts, "config": ALIGN, "checkpoint_path": file, **ROWS}
    align(model, TOKENIZER, moe, routing=consistent(model, moe).patch, **options)
    other = consistent(model, moe, ALIGN.model_copy(update={"router_lr": 1e-3})).patch
    with pytest.raises(RunError, match="other settings or data"):
        align(model, TOKENIZER, moe, routing=other, **options)

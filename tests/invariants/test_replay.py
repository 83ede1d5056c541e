"""Replay forces recorded routing exactly, on this model or a changed one, also when checkpointing reruns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models import FAMILIES, bits, checkpointed, loss_of, padded_batch
from rasa_moe.errors import ModelError
from rasa_moe.moe import MoeMap, RoutingTrace, discover, record, replay

WEIGHTS = pytest.mark.parametrize("weights", ["recorded", "live"])


def traced(model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]) -> tuple[RoutingTrace, Tensor]:
    with torch.no_grad(), record(moe, model) as trace:
        logits = model(**batch, use_cache=False).logits
    return trace, logits


@pytest.fixture
def changed(family: str) -> PreTrainedModel:
    """The same model with other routers, so that it routes otherwise."""
    model = FAMILIES[family]()
    with torch.no_grad():
        for layer in discover(model).layers:
            for parameter in layer.router.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@WEIGHTS
def test_replay_on_the_same_model_is_bit_identical(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], weights: str
) -> None:
    trace, logits = traced(model, moe, batch)
    with torch.no_grad(), replay(moe, trace, weights=weights):  # type: ignore[arg-type]
        assert torch.equal(model(**batch, use_cache=False).logits, logits)
    assert "forward" not in vars(moe.layers[0].router)


@WEIGHTS
def test_replay_under_generate_is_bit_identical(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], weights: str
) -> None:
    options = {
        "do_sample": False,
        "max_new_tokens": 5,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with record(moe, model) as trace:
        first = model.generate(**batch, **options)
    with replay(moe, trace, weights=weights):  # type: ignore[arg-type]
        second = model.generate(**batch, **options)
    assert torch.equal(first.sequences, second.sequences)
    assert all(torch.equal(a, b) for a, b in zip(first.logits, second.logits, strict=True))


@WEIGHTS
def test_replay_forces_the_base_routing_on_a_changed_model(
    model: PreTrainedModel, moe: MoeMap, changed: PreTrainedModel, batch: dict[str, Tensor], weights: str
) -> None:
    trace, logits = traced(model, moe, batch)
    changed_moe = discover(changed)
    own, _ = traced(changed, changed_moe, batch)
    assert any(not torch.equal(own.ids[name], ids) for name, ids in trace.ids.items()), (
        "the change must matter"
    )
    with torch.no_grad(), replay(changed_moe, trace, weights=weights):  # type: ignore[arg-type]
        forced, forced_logits = traced(changed, changed_moe, batch)
    for name, ids in trace.ids.items():
        assert torch.equal(forced.ids[name], ids)
    # Only routers differ: with recorded weights nothing of the difference is left.
    assert torch.equal(forced_logits, logits) == (weights == "recorded")


def test_record_opened_first_still_sees_what_replay_forces(
    model: PreTrainedModel, moe: MoeMap, changed: PreTrainedModel, batch: dict[str, Tensor]
) -> None:
    trace, _ = traced(model, moe, batch)
    changed_moe = discover(changed)
    with torch.no_grad(), record(changed_moe, changed) as seen, replay(changed_moe, trace):
        changed(**batch)
    assert all(torch.equal(seen.ids[name], ids) for name, ids in trace.ids.items())


def test_live_weights_let_the_gradient_reach_the_router(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    trace, _ = traced(model, moe, batch)
    routers = {
        name: tensor for layer in moe.layers for name, tensor in layer.router.named_parameters(layer.name)
    }
    free = torch.autograd.grad(loss_of(model, batch), list(routers.values()))
    with replay(moe, trace, weights="live"):
        live = torch.autograd.grad(loss_of(model, batch), list(routers.values()))
    assert all(float(gradient.abs().max()) > 0 for gradient in live)
    assert all(torch.equal(a, b) for a, b in zip(free, live, strict=True))
    with replay(moe, trace, weights="recorded"):
        pinned = torch.autograd.grad(loss_of(model, batch), list(routers.values()), allow_unused=True)
    assert all(gradient is None for gradient in pinned)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture
def forced(
    model: PreTrainedModel, moe: MoeMap, changed: PreTrainedModel, batch: dict[str, Tensor]
) -> Iterator[tuple[PreTrainedModel, MoeMap, RoutingTrace, list[dict[str, Tensor]]]]:
    """A changed model, the base routing of two batches, and the batches."""
    batches = [batch, padded_batch(seed=5)]
    with torch.no_grad(), record(moe, model) as trace:
        for one in batches:
            model(**one, use_cache=False)
    yield changed, discover(changed), trace, batches


@WEIGHTS
@pytest.mark.parametrize("backward", ["inside", "after closing"])
def test_checkpointing_gives_the_gradients_of_the_forced_routing(
    forced: tuple[PreTrainedModel, MoeMap, RoutingTrace, list[dict[str, Tensor]]], weights: str, backward: str
) -> None:
    model, moe, trace, batches = forced
    with replay(moe, trace, weights=weights):  # type: ignore[arg-type]
        sum(loss_of(model, batch) for batch in batches).backward()
    expected = gradients(model)
    checkpointed(model)
    with replay(moe, trace, weights=weights):  # type: ignore[arg-type]
        # Two forwards before one backward: each layer must be rerun with the routing of its own call.
        loss = sum(loss_of(model, batch) for batch in batches)
        if backward == "inside":
            loss.backward()
    if backward == "after closing":
        loss.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)
    assert "forward" not in vars(moe.layers[0].router)


def test_a_trace_recorded_in_inference_mode_can_be_trained_with(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    with torch.inference_mode(), record(moe, model) as trace:
        model(**batch)
    for weights in ("recorded", "live"):
        with replay(moe, trace, weights=weights):  # type: ignore[arg-type]
            loss_of(model, batch).backward()


@WEIGHTS
def test_other_shapes_and_further_calls_are_refused(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], weights: str
) -> None:
    trace, _ = traced(model, moe, batch)
    shorter = {name: tensor[:, 1:] for name, tensor in batch.items()}
    refused = pytest.raises(ModelError, match="exactly the recorded batch")
    with torch.no_grad(), replay(moe, trace, weights=weights), refused:  # type: ignore[arg-type]
        model(**shorter)
    with torch.no_grad(), replay(moe, trace, weights=weights):  # type: ignore[arg-type]
        model(**batch)
        with pytest.raises(ModelError, match="called more often"):
            model(**batch)


def test_replay_leaves_nothing_behind(model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]) -> None:
    before = bits(model)
    trace, logits = traced(model, moe, batch)
    checkpointed(model)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    checkpoints = [vars(layer)["_gradient_checkpointing_func"] for layer in model.model.layers]
    with replay(moe, trace), record(moe, model), replay(moe, trace, weights="live"):
        loss_of(model, batch).backward()
    assert [vars(layer)["_gradient_checkpointing_func"] for layer in model.model.layers] == checkpoints
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(model.eval()(**batch, use_cache=False).logits, logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

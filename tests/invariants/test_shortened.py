"""What is left out of a call changes nothing that is read: losses, routing and gradients are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from models import FAMILIES, VOCABULARY
from rasa_moe.moe import (
    ExpertId,
    ExpertSlices,
    TrainableRouters,
    call_for_routing,
    checkpointed,
    discover,
    logits_at,
    watch_routers,
)

NAMES = ["olmoe", "qwen3_moe", "deepseek_v3", "gpt_oss"]


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", NAMES)
def test_scores_at_some_positions_are_those_of_the_whole_call(name: str) -> None:
    model, batch = FAMILIES[name](), inputs()
    positions = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) > 0.6
    with torch.no_grad():
        whole = model(**batch).logits
        with logits_at(model, positions):
            some = model(**batch).logits
    assert some.shape == (int(positions.sum()), whole.shape[-1])
    torch.testing.assert_close(some, whole[positions])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, whole), "the model is as it was"


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_routing_and_router_gradients_need_no_more_than_the_last_router(
    name: str, is_checkpointed: bool
) -> None:
    model, batch = FAMILIES[name](), inputs()
    moe = discover(model)

    def gradients(call: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        routers = TrainableRouters(moe)
        with routers, checkpointed(model) if is_checkpointed else nullcontext():
            with watch_routers(moe, model) as watch:
                call()
            routing = watch.mean_probabilities()
            routing.square().sum().backward()
        return routing.detach(), [parameter.grad for parameter in routers]

    routing, expected = gradients(lambda: model(**batch, use_cache=False))
    short_routing, found = gradients(lambda: call_for_routing(moe, model, **batch))
    torch.testing.assert_close(short_routing, routing)
    assert any(gradient is not None and bool(gradient.any()) for gradient in expected)
    torch.testing.assert_close(found, expected)


def test_the_last_experts_are_not_run_for_the_routing() -> None:
    model = FAMILIES["olmoe"]()
    moe = discover(model)
    ran: list[int] = []
    for row, layer in enumerate(moe.layers):
        layer.experts.register_forward_hook(lambda *_, row=row: ran.append(row))
    with watch_routers(moe, model) as watch:
        call_for_routing(moe, model, **inputs())
    assert ran == [0] and watch.mean_probabilities().shape == (3, 2, 8)
    ran.clear()
    model(**inputs())
    assert ran == [0, 1], "the next call runs to its end"


def test_nothing_is_stored_below_the_lowest_trained_layer() -> None:
    model = FAMILIES["olmoe"](num_hidden_layers=4)
    moe = discover(model)

    def stored(layer: int) -> list[int]:
        where: list[int] = []
        current = [-1]
        handles = [
            module.register_forward_pre_hook(lambda *_, place=place: current.__setitem__(0, place))
            for place, module in enumerate(model.model.layers)
        ]
        with ExpertSlices(moe, [ExpertId(layer, 0), ExpertId(layer, 1)]), _storing(where, current):
            model(**inputs(), use_cache=False)
        for handle in handles:
            handle.remove()
        return where

    assert min(stored(0)) == 0
    assert min(stored(2)) == 2 and max(stored(2)) == 3


@contextmanager
def _storing(where: list[int], current: list[int]) -> Iterator[None]:
    """Note the layer that runs whenever autograd keeps a tensor for backward."""

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        where.append(current[0])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield

"""Router training moves routers only, in fp32, and watched distributions are those of the method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models import FAMILIES, bits, checkpointed, loss_of, olmoe
from rasa_moe.errors import DataError, ModelError
from rasa_moe.moe import ExpertSlices, MoeMap, TrainableRouters, discover, trainable_routers, watch_routers

PREPARE = pytest.mark.parametrize(
    "prepare", [lambda model: model, checkpointed], ids=["plain", "checkpointed"]
)


def router_names(moe: MoeMap) -> set[str]:
    return {name for layer in moe.layers for name, _ in layer.router.named_parameters(layer.router_name)}


@PREPARE
def test_gradients_are_those_of_full_training(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], prepare: object
) -> None:
    prepare(model)  # type: ignore[operator]
    loss_of(model, batch).backward()
    full = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with trainable_routers(moe) as routers:
        loss_of(model, batch).backward()
    assert {name for name, _ in routers.named_parameters()} == router_names(moe)
    for name, master in routers.named_parameters():
        torch.testing.assert_close(master.grad, full[name], rtol=1e-5, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@PREPARE
def test_training_moves_routers_and_no_other_bit(
    family: str, batch: dict[str, Tensor], prepare: object, dtype: torch.dtype
) -> None:
    model = FAMILIES[family]().to(dtype)
    moe = discover(model)
    prepare(model)  # type: ignore[operator]
    before, wanted = bits(model), [parameter.requires_grad for parameter in model.parameters()]
    with trainable_routers(moe) as routers:
        optimizer = torch.optim.AdamW(routers, lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        with torch.no_grad():
            trained = model(**batch, use_cache=False).logits
    with torch.no_grad():
        assert torch.equal(model(**batch, use_cache=False).logits, trained), "writing back must be exact"
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == router_names(moe)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all("weight" not in vars(layer.router) for layer in moe.layers)


def test_steps_too_small_for_bfloat16_add_up() -> None:
    model = olmoe().to(torch.bfloat16)
    moe = discover(model)
    before = bits(model)
    routers = TrainableRouters(moe)
    for _ in range(20):
        with routers:
            for master in routers:
                master.data.mul_(1 + 2**-12)
    for name in router_names(moe):
        moved = model.get_parameter(name).detach().float() / before[name].float()
        assert 1.003 < float(moved.mean()) < 1.007


def test_state_can_be_saved_and_must_fit() -> None:
    moe = discover(olmoe())
    routers = trainable_routers(moe)
    assert len(routers) == len(routers.parameters()) == 2
    assert routers.num_parameters == 2 * 8 * 32
    other = trainable_routers(moe)
    other.load_state_dict({name: master + 1 for name, master in routers.state_dict().items()})
    for a, b in zip(routers, other, strict=True):
        assert torch.equal(a + 1, b)
    with pytest.raises(ModelError, match="does not fit these routers"):
        other.load_state_dict({})


def test_slices_and_routers_can_learn_together(batch: dict[str, Tensor]) -> None:
    model = olmoe()
    moe = discover(model)
    with ExpertSlices(moe, moe.expert_ids()) as slices, trainable_routers(moe) as routers:
        loss_of(model, batch).backward()
    assert all(parameter.grad is not None for parameter in (*slices.parameters(), *routers))
    assert all(parameter.requires_grad for parameter in model.parameters())


def slow_mean_probabilities(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], span: Tensor
) -> Tensor:
    """Average each token's distribution one by one, from logits caught by hooks of the test's own."""
    logits: dict[str, Tensor] = {}
    handles = [
        layer.router.register_forward_hook(lambda _, __, out, name=layer.name: logits.update({name: out[0]}))
        for layer in moe.layers
    ]
    model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    rows = []
    for b in range(len(span)):
        for layer in moe.layers:
            tokens = logits[layer.name].view(*span.shape, -1)[b][span[b]]
            scores = tokens.sigmoid() if layer.scoring == "sigmoid" else tokens.exp()
            rows.append(torch.stack([score / score.sum() for score in scores]).mean(0))
    return torch.stack(rows).view(len(span), moe.num_layers, moe.num_experts)


def test_watched_routers_give_the_mean_of_probabilities(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    real = batch["attention_mask"].bool()
    span = real.clone()
    span[:, -2:] = False
    with torch.no_grad(), watch_routers(moe, model) as watch:
        model(**batch, use_cache=False)
        everything, part = watch.mean_probabilities(), watch.mean_probabilities(span)
    with torch.no_grad():
        torch.testing.assert_close(everything, slow_mean_probabilities(model, moe, batch, real))
        torch.testing.assert_close(part, slow_mean_probabilities(model, moe, batch, span))
    torch.testing.assert_close(part.sum(-1), torch.ones(part.shape[:2]))


@PREPARE
def test_a_loss_on_watched_routers_reaches_the_routers(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], prepare: object
) -> None:
    direction = torch.randn(3, moe.num_layers, moe.num_experts)
    names = sorted(router_names(moe))
    parameters = [model.get_parameter(name) for name in names]
    slow = slow_mean_probabilities(model, moe, batch, batch["attention_mask"].bool())
    expected = torch.autograd.grad((slow * direction).sum(), parameters)
    prepare(model)  # type: ignore[operator]
    with trainable_routers(moe) as routers, watch_routers(moe, model) as watch:
        model(**batch, use_cache=False)
        (watch.mean_probabilities() * direction).sum().backward()
    masters = dict(routers.named_parameters())
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(masters[name].grad, gradient, rtol=1e-4, atol=1e-6)


def test_what_was_not_watched_cannot_be_asked_for(batch: dict[str, Tensor]) -> None:
    model = olmoe()
    moe = discover(model)
    with watch_routers(moe, model) as watch:
        with pytest.raises(ModelError, match="No complete forward call"):
            watch.mean_probabilities()
        model(**batch)
        span = torch.zeros(3, 9, dtype=torch.bool)
        with pytest.raises(DataError, match="no token in its span"):
            watch.mean_probabilities(span)
        with pytest.raises(ModelError, match="span has shape"):
            watch.mean_probabilities(span[:2])

"""Changes of low rank train what LoRA would train in the chosen experts, and leave every other bit alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from invariants.test_slices import rows_of, some_experts, train
from models import FAMILIES, bits, checkpointed, loss_of
from rasa_moe.moe import ExpertSlices, MoeMap, discover, put_back, snapshot

RANK = 8


def parameter_of(name: str) -> str:
    return name.partition("[selected]")[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_they_change_no_bit(family: str, batch: dict[str, Tensor], dtype: torch.dtype) -> None:
    model = FAMILIES[family]().to(dtype)
    model.set_experts_implementation("grouped_mm")
    moe = discover(model)
    before = bits(model)
    with torch.no_grad():
        logits = model(**batch).logits
        with ExpertSlices(moe, some_experts(moe), rank=RANK) as slices:
            assert all(part.dtype == torch.float32 for part in slices.parameters())
            assert torch.equal(model(**batch).logits, logits)
            slices.merge()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("prepare", [lambda model: model, checkpointed], ids=["plain", "checkpointed"])
def test_gradients_are_those_of_the_product(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], prepare: object
) -> None:
    """W = W0 + 2 BA, so dL/dB = 2 dL/dW A' and dL/dA = 2 B' dL/dW, with dL/dW from full training."""
    prepare(model)  # type: ignore[operator]
    experts = some_experts(moe)
    slices = ExpertSlices(moe, experts, rank=RANK, seed=3)
    with torch.no_grad():
        for part in slices.parameters():
            part.normal_(std=0.05)
    with slices:
        loss_of(model, batch).backward()
    slices.merge()
    loss_of(model, batch).backward()
    full = {name: p.grad for name, p in model.named_parameters()}
    found = dict(slices.named_parameters())
    thin = {name.rpartition(".")[0] for name in found if name.endswith((".down", ".up"))}
    assert thin, "a model without fused matrices tests nothing"
    for name in thin:
        owner = parameter_of(name)
        of_rows = full[owner][rows_of(moe, experts)[owner.rpartition(".")[0]]]
        is_transposed = bool(moe.layers[0].experts.is_transposed)
        of_rows = of_rows.transpose(1, 2) if is_transposed else of_rows
        down, up = found[f"{name}.down"], found[f"{name}.up"]
        assert float(of_rows.abs().max()) > 1e-5
        torch.testing.assert_close(up.grad, 2 * of_rows @ down.transpose(1, 2), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(down.grad, 2 * up.transpose(1, 2) @ of_rows, rtol=1e-4, atol=1e-6)


def test_merging_writes_the_chosen_rows_and_no_other_bit(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    before, experts = bits(model), some_experts(moe)
    rows_before = snapshot(moe, model, experts)
    with ExpertSlices(moe, experts, rank=RANK) as slices:
        train(model, slices, batch)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        with torch.no_grad():
            trained = model(**batch, use_cache=False).logits
    for _ in range(2):  # merging again adds nothing
        slices.merge()
        with torch.no_grad():
            torch.testing.assert_close(model(**batch, use_cache=False).logits, trained, rtol=1e-4, atol=1e-5)
    touched = {parameter_of(name) for name, _ in slices.named_parameters()}
    for name, tensor in model.state_dict().items():
        kept = torch.ones(len(tensor), dtype=torch.bool)
        if name in touched:
            kept[rows_of(moe, experts)[name.rpartition(".")[0]]] = False
            changed = tensor[~kept] - before[name][~kept]
            assert float(changed.abs().max()) > 1e-4
            if changed.dim() == 3:
                assert int(torch.linalg.matrix_rank(changed, rtol=1e-3).max()) <= RANK
        assert torch.equal(tensor[kept], before[name][kept])
    put_back(moe, model, slices.experts, before=rows_before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_they_go_on_from_a_saved_state_and_begin_by_seed(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    first, again, other = (ExpertSlices(moe, some_experts(moe), rank=RANK, seed=s) for s in (0, 0, 1))
    same = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in same)
    assert any(
        not torch.equal(one, two) for one, two in zip(first.parameters(), other.parameters(), strict=True)
    )
    with first:
        train(model, first, batch)
        with torch.no_grad():
            trained = model(**batch, use_cache=False).logits
    other.load_state_dict(first.state_dict())
    with other, torch.no_grad():
        assert torch.equal(model(**batch, use_cache=False).logits, trained)

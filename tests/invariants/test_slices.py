"""Slices train the chosen experts exactly as full training would, and leave every other bit alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models import FAMILIES, bits, checkpointed, loss_of, nemotron_h, olmoe
from rasa_moe.errors import ModelError
from rasa_moe.moe import ExpertId, ExpertSlices, MoeMap, discover, grouped, put_back, record, snapshot
from rasa_moe.moe.kept_gradients import _add as add_gradient

CHOSEN = (3, 1)


def some_experts(moe: MoeMap) -> list[ExpertId]:
    """Two experts of the first MoE layer and one of the last, out of order."""
    first, last = moe.layers[0].index, moe.layers[-1].index
    return [ExpertId(last, 2), *(ExpertId(first, expert) for expert in CHOSEN)]


def rows_of(moe: MoeMap, experts: list[ExpertId]) -> dict[str, list[int]]:
    return {moe.layers[row].experts_name: chosen for row, chosen in moe.by_layer(experts).items()}


def tensor_and_rows(name: str, rows: dict[str, list[int]]) -> tuple[str, list[int]]:
    """Split "a.b.experts.down_proj[selected]" into the parameter's name and the chosen rows."""
    parameter = name.removesuffix("[selected]")
    return parameter, rows[parameter.rpartition(".")[0]]


def train(
    model: PreTrainedModel, slices: ExpertSlices, batch: dict[str, Tensor], *, steps: int = 3
) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(slices.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return optimizer


def test_untrained_slices_change_no_bit(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    model.set_experts_implementation("grouped_mm")
    for experts in (some_experts(moe), moe.expert_ids(), moe.expert_ids()[:1]):
        with torch.no_grad():
            logits = model(**batch).logits
            with ExpertSlices(moe, experts):
                assert torch.equal(model(**batch).logits, logits)


def test_untrained_slices_change_no_bit_in_bfloat16(family: str, batch: dict[str, Tensor]) -> None:
    model = FAMILIES[family]().to(torch.bfloat16)
    moe = discover(model)
    with torch.no_grad():
        logits = model(**batch).logits
        with ExpertSlices(moe, some_experts(moe)) as slices:
            assert all(rows.dtype == torch.float32 for rows in slices.parameters())
            assert torch.equal(model(**batch).logits, logits)


@pytest.mark.parametrize("prepare", [lambda model: model, checkpointed], ids=["plain", "checkpointed"])
def test_gradients_are_the_rows_of_full_training(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], prepare: object
) -> None:
    prepare(model)  # type: ignore[operator]
    loss_of(model, batch).backward()
    full = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    experts = some_experts(moe)
    with ExpertSlices(moe, experts) as slices:
        loss_of(model, batch).backward()
    assert len(slices.parameters()) == len({name for name, _ in slices.named_parameters()})
    for name, rows in slices.named_parameters():
        parameter, chosen = tensor_and_rows(name, rows_of(moe, experts))
        assert float(full[parameter][chosen].abs().max()) > 1e-4
        torch.testing.assert_close(rows.grad, full[parameter][chosen], rtol=1e-5, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("prepare", [lambda model: model, checkpointed], ids=["plain", "checkpointed"])
def test_training_moves_the_chosen_rows_and_no_other_bit(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], prepare: object
) -> None:
    prepare(model)  # type: ignore[operator]
    before = bits(model)
    rows_before = snapshot(moe, model, some_experts(moe))
    experts = some_experts(moe)
    with ExpertSlices(moe, experts) as slices:
        train(model, slices, batch)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        with torch.no_grad():
            trained = model(**batch, use_cache=False).logits
        slices.merge()
    with torch.no_grad():
        assert torch.equal(model(**batch, use_cache=False).logits, trained), "merging must be exact"
    touched = {
        tensor_and_rows(name, rows_of(moe, experts))[0]: (
            tensor_and_rows(name, rows_of(moe, experts))[1],
            rows,
        )
        for name, rows in slices.named_parameters()
    }
    for name, tensor in model.state_dict().items():
        chosen, rows = touched.get(name, ([], None))
        kept = torch.ones(len(tensor), dtype=torch.bool)
        kept[chosen] = False
        assert torch.equal(tensor[kept], before[name][kept])
        if rows is not None:
            assert torch.equal(tensor[chosen], rows.detach())
            assert not any(torch.equal(tensor[row], before[name][row]) for row in chosen)
    put_back(moe, model, slices.experts, before=rows_before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_experts_without_a_gate_are_trained_alike(batch: dict[str, Tensor]) -> None:
    model = nemotron_h()
    moe = discover(model)
    assert (moe.dense_layers, [layer.index for layer in moe.layers]) == ((1, 3), [0, 2])
    logits = model(**batch, use_cache=False).logits
    loss_of(model, batch).backward()
    full = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    experts = some_experts(moe)
    with ExpertSlices(moe, experts) as slices:
        assert torch.equal(model(**batch, use_cache=False).logits, logits)
        loss_of(model, batch).backward()
        for name, rows in slices.named_parameters():
            parameter, chosen = tensor_and_rows(name, rows_of(moe, experts))
            torch.testing.assert_close(rows.grad, full[parameter][chosen], rtol=1e-5, atol=1e-7)
        train(model, slices, batch, steps=1)
        trained = model(**batch, use_cache=False).logits
    slices.merge()
    assert torch.equal(model(**batch, use_cache=False).logits, trained)
    assert not torch.equal(trained, logits)


def test_merging_into_bfloat16_rounds_the_chosen_rows_only(family: str, batch: dict[str, Tensor]) -> None:
    model = FAMILIES[family]().to(torch.bfloat16)
    moe = discover(model)
    before = bits(model)
    rows_before = snapshot(moe, model, some_experts(moe))
    with ExpertSlices(moe, some_experts(moe)) as slices:
        train(model, slices, batch)
        with torch.no_grad():
            trained = model(**batch, use_cache=False).logits
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    slices.merge()
    with torch.no_grad():
        assert torch.equal(model(**batch, use_cache=False).logits, trained)
    put_back(moe, model, slices.experts, before=rows_before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_optimizer_holds_state_for_the_slices_only(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    experts = some_experts(moe)
    with ExpertSlices(moe, experts) as slices:
        optimizer = train(model, slices, batch, steps=1)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    moments = [m for state in optimizer.state.values() for key, m in state.items() if key != "step"]
    assert sum(m.numel() for m in moments) == 2 * slices.num_parameters
    per_expert = sum(
        model.get_parameter(name.removesuffix("[selected]"))[0].numel()
        for name, _ in slices.named_parameters()
        if f".{moe.layers[-1].index}." in name
    )
    assert slices.num_parameters == len(experts) * per_expert


def test_the_model_is_as_it_was_after_closing(model: PreTrainedModel, moe: MoeMap) -> None:
    model.model.embed_tokens.weight.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.set_experts_implementation("eager")
    names = list(model.state_dict())
    with pytest.raises(RuntimeError, match="stop"), ExpertSlices(moe, some_experts(moe)):
        assert list(model.state_dict()) == names
        raise RuntimeError("stop")
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert model.get_experts_implementation()[""] == "eager"


def test_experts_that_no_token_visits_are_allowed(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    # One real token per sequence leaves some experts of every layer unused.
    single = {name: tensor[:1, -1:] for name, tensor in batch.items()}
    layer = moe.layers[-1]
    with torch.no_grad(), record(moe, model) as trace:
        logits = model(**single).logits
    unused = sorted(set(range(layer.num_experts)) - set(trace.ids[layer.name].flatten().tolist()))
    with ExpertSlices(moe, [ExpertId(layer.index, expert) for expert in unused]) as slices:
        assert torch.equal(model(**single).logits, logits)
    assert all(rows.grad is None for rows in slices.parameters())


def test_the_same_slices_go_on_when_opened_again(batch: dict[str, Tensor]) -> None:
    """With a base in bf16, small steps over several rounds add up only in the fp32 rows."""
    model = olmoe().to(torch.bfloat16)
    moe = discover(model)
    slices = ExpertSlices(moe, some_experts(moe))
    base = slices.state_dict()
    for _ in range(20):
        with slices:
            for rows in slices.parameters():
                rows.data.mul_(1 + 2**-12)
            slices.merge()
    for name, rows in slices.state_dict().items():
        torch.testing.assert_close(rows, base[name] * (1 + 2**-12) ** 20)
        parameter, chosen = tensor_and_rows(name, rows_of(moe, some_experts(moe)))
        assert torch.equal(model.get_parameter(parameter)[chosen], rows.to(torch.bfloat16))
        assert not torch.equal(rows.to(torch.bfloat16).float(), base[name]), (
            "twenty steps of 2**-12 must show in bf16"
        )


def test_state_can_be_saved_and_must_fit(batch: dict[str, Tensor]) -> None:
    model = olmoe()
    moe = discover(model)
    slices = ExpertSlices(moe, some_experts(moe))
    with slices:
        train(model, slices, batch, steps=1)
    state = slices.state_dict()
    assert list(state) == [name for name, _ in slices.named_parameters()]
    assert "model.layers.0.mlp.experts.down_proj[selected]" in state
    other = ExpertSlices(moe, some_experts(moe))
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(slices.parameters(), other.parameters(), strict=True))
    with pytest.raises(ModelError, match="does not fit these expert slices"):
        ExpertSlices(moe, moe.expert_ids()[:3]).load_state_dict(state)


def test_wrong_uses_are_refused() -> None:
    moe = discover(olmoe())
    with pytest.raises(ModelError, match="No experts were chosen"):
        ExpertSlices(moe, [])
    with pytest.raises(ModelError, match="does not exist"):
        ExpertSlices(moe, [ExpertId(0, 99)])
    with ExpertSlices(moe, moe.expert_ids()[:1]), pytest.raises(ModelError, match="open already"):
        ExpertSlices(moe, moe.expert_ids()[1:2]).__enter__()


def test_gradients_of_several_passes_add_up_in_memory_that_stays(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    with ExpertSlices(moe, some_experts(moe)) as slices:
        # Gradients of biases are small, and autograd's own.
        parameters = [rows for name, rows in slices.named_parameters() if "_bias" not in name]

        def gradients(passes: int) -> list[Tensor]:
            for _ in range(passes):
                loss_of(model, batch).backward()
            return [parameter.grad for parameter in parameters if parameter.grad is not None]

        once = [gradient.clone() for gradient in gradients(1)]
        places = [gradient.data_ptr() for gradient in gradients(0)]
        twice = [gradient.clone() for gradient in gradients(1)]
        for parameter in slices.parameters():
            parameter.grad = None
        again = gradients(1)
    assert once and len(once) == len(twice) == len(again)
    for first, both, later in zip(once, twice, again, strict=True):
        torch.testing.assert_close(both, 2 * first)
        assert torch.equal(later, first)
    assert [gradient.data_ptr() for gradient in again] == places


def test_asking_for_the_gradient_of_something_else_leaves_that_of_rows_alone(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    nudge = torch.zeros(model.config.hidden_size, requires_grad=True)
    embeddings = model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda module, args, output: output + nudge)
    with handle, ExpertSlices(moe, some_experts(moe)) as slices:
        (asked,) = torch.autograd.grad(loss_of(model, batch), nudge)
        assert asked.abs().max() > 0
        assert all(parameter.grad is None for parameter in slices.parameters())
        loss_of(model, batch).backward()
        torch.testing.assert_close(nudge.grad, asked)
        assert any(parameter.grad is not None for parameter in slices.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_gradients_are_those_of_autograd(
    family: str, batch: dict[str, Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES[family]().to(dtype)
    moe = discover(model)

    def gradients() -> dict[str, Tensor]:
        with ExpertSlices(moe, some_experts(moe)) as slices:
            loss_of(model, batch).backward()
            for rows in slices.parameters():
                if rows.grad is not None:
                    # What one step leaves in the memory that stays is nothing to the next.
                    rows.grad.fill_(float("nan"))
                    rows.grad = None
            loss_of(model, batch).backward()
        return {name: rows.grad for name, rows in slices.named_parameters() if rows.grad is not None}

    kept = gradients()
    monkeypatch.setattr(grouped, "can_keep", lambda parameter: False)
    plain = gradients()
    assert kept.keys() == plain.keys()
    for name, gradient in plain.items():
        assert kept[name].dtype == gradient.dtype == torch.float32
        torch.testing.assert_close(kept[name], gradient, msg=name)


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_gradient_is_written_whole_and_a_later_one_added(
    dtype: torch.dtype, is_transposed: bool
) -> None:
    inputs, outputs = torch.randn(5, 4).to(dtype), torch.randn(5, 6).to(dtype)
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)  # nothing for the second expert
    total = torch.full((3, 4, 6) if is_transposed else (3, 6, 4), float("nan"))
    expected = torch.zeros_like(total)
    for expert, pairs in ((0, slice(0, 2)), (2, slice(2, 5))):
        of_expert = inputs[pairs].T.float() @ outputs[pairs].float()
        expected[expert] = of_expert if is_transposed else of_expert.T
    for passes in (1, 2):
        add_gradient(total, inputs, outputs, ends, is_transposed=is_transposed, is_new=passes == 1)
        torch.testing.assert_close(total, passes * expected, rtol=1e-2, atol=1e-2)
        assert not total[1].any()

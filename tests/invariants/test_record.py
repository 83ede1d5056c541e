"""What is recorded is what the experts were given: real tokens only, batched or generated in any way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from models import checkpointed, loss_of, olmoe
from rasa_moe.errors import DataError, ModelError
from rasa_moe.moe import MoeMap, RoutingTrace, count_activations, discover, record, watch_routers


def router_outputs(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> dict[str, tuple[Tensor, ...]]:
    """Catch the routers' own outputs by hooks of the test's own."""
    seen: dict[str, tuple[Tensor, ...]] = {}
    handles = [
        layer.router.register_forward_hook(lambda _, __, output, name=layer.name: seen.update({name: output}))
        for layer in moe.layers
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return seen


def recorded(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor], **options: object
) -> RoutingTrace:
    with torch.no_grad(), record(moe, model, **options) as trace:  # type: ignore[arg-type]
        model(**batch)
    return trace


def test_record_is_the_routers_output_at_real_tokens(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    outputs = router_outputs(model, moe, batch)
    trace = recorded(model, moe, batch, probabilities=True)
    real = batch["attention_mask"].bool().flatten()
    assert list(trace.ids) == [layer.name for layer in moe.layers]
    for layer in moe.layers:
        logits, weights, ids = outputs[layer.name]
        assert trace.ids[layer.name].dtype == torch.int64
        assert torch.equal(trace.ids[layer.name], ids[real])
        assert torch.equal(trace.weights[layer.name], weights[real])
        scores = logits[real].sigmoid() if layer.scoring == "sigmoid" else logits[real].exp()
        expected = scores / scores.sum(-1, keepdim=True)
        torch.testing.assert_close(trace.probabilities[layer.name], expected)


def test_one_by_one_equals_a_padded_batch(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    together = recorded(model, moe, batch)
    with torch.no_grad(), record(moe, model) as alone:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            model(input_ids=ids[mask.bool()][None])
    assert len(alone.calls) == 3
    for name in together.ids:
        assert torch.equal(together.ids[name].sort(-1)[0], alone.ids[name].sort(-1)[0])


def test_what_stands_in_the_padding_changes_nothing(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    trace = recorded(model, moe, batch)
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 17)}
    for name, ids in recorded(model, moe, other).ids.items():
        assert torch.equal(ids, trace.ids[name])


def test_generation_with_a_cache_routes_like_one_forward(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    with record(moe, model) as trace:
        sequences = model.generate(**batch, do_sample=False, max_new_tokens=6, min_new_tokens=6)
    assert len(trace.calls) == 6
    # The last new token is never read, so it is not routed.
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 5, dtype=torch.int64)], dim=1)
    whole = recorded(model, moe, {"input_ids": sequences[:, :-1], "attention_mask": mask})
    assert torch.equal(trace.mask, whole.mask)
    for layer in moe.layers:
        generated, full = trace.grid(layer.name)[trace.mask], whole.grid(layer.name)[whole.mask]
        assert torch.equal(generated.sort(-1)[0], full.sort(-1)[0])


def test_a_span_narrows_and_must_fit(model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]) -> None:
    span = torch.zeros_like(batch["attention_mask"], dtype=torch.bool)
    span[:, :5] = True
    real = batch["attention_mask"].bool()
    everything, part = recorded(model, moe, batch), recorded(model, moe, batch, span=span)
    for name, ids in part.ids.items():
        assert torch.equal(ids, everything.ids[name][span[real]])
    with pytest.raises(ModelError, match="span has shape"):
        recorded(model, moe, batch, span=span[:, 1:])


def test_counts_match_a_slow_loop(model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]) -> None:
    span = torch.zeros_like(batch["attention_mask"], dtype=torch.bool)
    span[:, 3:8] = True
    trace = recorded(model, moe, batch)
    with torch.no_grad(), count_activations(moe, model, span=span) as counts:
        model(**batch)
        counts.span = None
        model(input_ids=batch["input_ids"][:2, 6:])
    expected = torch.zeros(3, moe.num_layers, moe.num_experts, dtype=torch.int64)
    for row, layer in enumerate(moe.layers):
        for b, s in (span & trace.mask).nonzero().tolist():
            for expert in trace.grid(layer.name)[b, s].tolist():
                expected[b, row, expert] += 1
    assert counts.counts.shape == (5, moe.num_layers, moe.num_experts)
    assert torch.equal(counts.counts[:3], expected)
    assert counts.tokens.tolist() == [5, 5, 4, 3, 3]
    torch.testing.assert_close(counts.rates().sum(-1), torch.full((5, moe.num_layers), float(moe.top_k)))


def test_an_empty_span_has_no_rates(model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]) -> None:
    span = torch.zeros_like(batch["attention_mask"], dtype=torch.bool)
    span[:, :1] = True
    with torch.no_grad(), count_activations(moe, model, span=span) as counts:
        model(**batch)
    with pytest.raises(DataError, match="Sequence 1 has no token"):
        counts.rates()


def test_layers_run_again_for_backward_are_not_recorded_twice(
    model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]
) -> None:
    expected = recorded(model, moe, batch).ids
    checkpointed(model)
    with record(moe, model) as trace, count_activations(moe, model) as counts:
        loss_of(model, batch).backward()
    assert len(trace.calls) == 1
    assert all(torch.equal(ids, expected[name]) for name, ids in trace.ids.items())
    assert counts.counts.sum() == moe.num_layers * moe.top_k * batch["attention_mask"].sum()


def test_hooks_are_gone_afterwards(model: PreTrainedModel, moe: MoeMap, batch: dict[str, Tensor]) -> None:
    trace = recorded(model, moe, batch)
    model(**batch)
    assert len(trace.calls) == 1
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []


def test_calls_that_cannot_be_read_are_refused(
    moe: MoeMap, model: PreTrainedModel, batch: dict[str, Tensor]
) -> None:
    with record(moe, model), pytest.raises(ModelError, match="call the model itself"):
        model.model(**batch)
    mask = torch.ones(3, 1, 9, 9, dtype=torch.bool)
    with record(moe, model), pytest.raises(ModelError, match="attention mask of shape"):
        model(input_ids=batch["input_ids"], attention_mask=mask)


def test_a_map_of_another_model_is_refused(batch: dict[str, Tensor]) -> None:
    model, moe = olmoe(), discover(olmoe())
    for context in (record(moe, model), count_activations(moe, model), watch_routers(moe, model)):
        with pytest.raises(ModelError, match="another model object"), context:
            model(**batch)

"""Answering with the base model's routing, against ordinary answers and a loop without cache and batches."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from rasa_moe.audit.checkpoints import changed_pieces
from rasa_moe.audit.components import difference
from rasa_moe.audit.swaps import generate_with_routing, routing_drift
from rasa_moe.data.chats import encode_chat
from rasa_moe.engines import Answer, generate
from rasa_moe.engines.local import LEFT_OUT, answer_of, stop_tokens
from rasa_moe.moe import RoutingTrace, discover, record, replay
from rasa_moe.moe.traces import RoutedCall
from unit.tiny import tiny_model, tiny_pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CONVERSATIONS = [messages for pair in tiny_pairs() for messages in (pair.jailbreak, pair.anchor)]
NEW_TOKENS = 12


@pytest.fixture
def base() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture
def tuned(base: PreTrainedModel) -> PreTrainedModel:
    """Other experts and other routers, so that both answers and routing differ."""
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for layer in discover(model).layers:
            for parameter in (*layer.experts.parameters(), *layer.router.parameters()):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def answers(tuned: PreTrainedModel, base: PreTrainedModel, *, batch_tokens: int = 8192) -> list[Answer]:
    moe = discover(base)
    changes = difference(moe, changed_pieces(moe, discover(tuned)), experts=moe.expert_ids()[:1])
    return generate_with_routing(
        base,
        TOKENIZER,
        moe,
        changes=changes,
        answered_by=changes.components,
        routed_by=(),
        conversations=CONVERSATIONS,
        max_new_tokens=NEW_TOKENS,
        batch_tokens=batch_tokens,
    )


def ordinary(model: PreTrainedModel) -> list[Answer]:
    return generate(model, TOKENIZER, CONVERSATIONS, max_new_tokens=NEW_TOKENS)


@torch.no_grad()
def slowly(tuned: PreTrainedModel, base: PreTrainedModel) -> list[Answer]:
    """Read the whole text again for every token, one conversation at a time."""
    found = []
    stops = stop_tokens(tuned, TOKENIZER)
    for conversation in CONVERSATIONS:
        ids = encode_chat(TOKENIZER, conversation).input_ids
        new: list[int] = []
        while len(new) < NEW_TOKENS and not stops.intersection(new):
            text = torch.tensor([[*ids, *new]])
            with record(discover(base), base) as trace:
                base(input_ids=text, use_cache=False)
            with replay(discover(tuned), trace):
                logits = tuned(input_ids=text, use_cache=False).logits
            new.append(int(logits[0, -1].argmax()))
        found.append(answer_of(TOKENIZER, new, prompt=ids, stops=stops))
    return found


def test_a_model_with_its_own_routing_answers_as_ever(base: PreTrainedModel) -> None:
    assert answers(copy.deepcopy(base), base) == ordinary(base)


def test_the_routing_of_the_base_is_what_decides(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    mixed = answers(tuned, base)
    assert mixed == slowly(tuned, base)
    texts = [[answer.text for answer in one] for one in (mixed, ordinary(tuned), ordinary(base))]
    assert texts[0] != texts[1] and texts[0] != texts[2], "the mixture must differ from both models"


def test_prompts_above_the_context_are_not_asked(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    lengths = [len(encode_chat(TOKENIZER, conversation)) for conversation in CONVERSATIONS]
    asked = answers(tuned, base)
    base.config.max_position_embeddings = limit = sorted(lengths)[len(lengths) // 2]
    expected = [one if length <= limit else LEFT_OUT for one, length in zip(asked, lengths, strict=True)]
    assert answers(tuned, base) == answers(tuned, base, batch_tokens=1) == expected
    assert expected.count(LEFT_OUT) not in (0, len(lengths))


def test_batches_change_nothing(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    assert answers(tuned, base, batch_tokens=1) == answers(tuned, base)


def test_a_model_with_only_other_routers_is_the_base_again(base: PreTrainedModel) -> None:
    """Replay gives ids and weights, so nothing that the routers learned can show."""
    rerouted = copy.deepcopy(base)
    with torch.no_grad():
        for layer in discover(rerouted).layers:
            for parameter in layer.router.parameters():
                parameter.copy_(parameter.flip(0))
    assert ordinary(rerouted) != ordinary(base)
    assert answers(rerouted, base) == ordinary(base)


def trace_of(*ids: list[list[int]]) -> RoutingTrace:
    trace = RoutingTrace()
    call = RoutedCall(mask=torch.ones(1, len(ids[0]), dtype=torch.bool))
    for number, layer in enumerate(ids):
        call.ids[f"layer {number}"] = torch.tensor(layer)
        call.weights[f"layer {number}"] = torch.ones(len(layer), len(layer[0]))
    trace.calls.append(call)
    return trace


def test_drift_counts_the_choices_that_the_first_did_not_make() -> None:
    first = trace_of([[0, 1], [2, 3], [4, 5]], [[0, 1], [0, 1], [0, 1]])
    second = trace_of([[1, 0], [2, 7], [6, 7]], [[0, 1], [1, 0], [0, 1]])
    # First layer: order does not matter; one of two, then both choices are new: 3 of 6.
    assert routing_drift(first, second) == pytest.approx({"layer 0": 0.5, "layer 1": 0.0})
    assert routing_drift(first, first) == pytest.approx({"layer 0": 0.0, "layer 1": 0.0})

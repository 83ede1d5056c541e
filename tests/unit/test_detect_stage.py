"""Detection from pairs to experts, against counting tokens one chat at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rasa_moe.config import DetectConfig
from rasa_moe.data.chats import EncodedChat, encode_chat
from rasa_moe.detect.stage import Detection, activation_rates, detect, expert_budget
from rasa_moe.errors import ConfigError
from rasa_moe.moe import MoeMap, discover, record
from unit.tiny import tiny_model, tiny_pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PAIRS = tiny_pairs()
SPANS = ("response", "prompt", "both", "last_prompt", "deciding")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def moe(model: PreTrainedModel) -> MoeMap:
    return discover(model)


def chats() -> list[EncodedChat]:
    jailbreaks = [encode_chat(TOKENIZER, pair.jailbreak, pair.jailbreak_answer) for pair in PAIRS]
    return jailbreaks + [encode_chat(TOKENIZER, pair.anchor, pair.anchor_answer) for pair in PAIRS]


def places(chat: EncodedChat, span: str) -> list[int]:
    """Write out which tokens of an unpadded chat belong to a span."""
    prompt, length = chat.prompt_length, len(chat)
    return {
        "prompt": list(range(prompt)),
        "response": list(range(prompt, length)),
        "both": list(range(length)),
        "last_prompt": [prompt - 1],
        "deciding": list(range(prompt - 1, length - 1)),
    }[span]


def slow_rates(model: PreTrainedModel, moe: MoeMap, span: str) -> torch.Tensor:
    """Count token by token, one chat at a time, without padding."""
    rates = torch.zeros(len(chats()), moe.num_layers, moe.num_experts)
    for number, chat in enumerate(chats()):
        with torch.no_grad(), record(moe, model) as trace:
            model(input_ids=torch.tensor([chat.input_ids]), use_cache=False)
        chosen = places(chat, span)
        for row, layer in enumerate(moe.layers):
            for place in chosen:
                for expert in trace.ids[layer.name][place].tolist():
                    rates[number, row, expert] += 1 / len(chosen)
    return rates


@pytest.mark.parametrize("span", SPANS)
def test_rates_equal_counting_token_by_token(model: PreTrainedModel, moe: MoeMap, span: str) -> None:
    expected = slow_rates(model, moe, span)
    for batch_tokens in (1, 60, 8192):
        rates = activation_rates(model, TOKENIZER, moe, chats=chats(), span=span, batch_tokens=batch_tokens)
        torch.testing.assert_close(rates, expected, atol=1e-6, rtol=0)


def run(model: PreTrainedModel, moe: MoeMap, **settings: Any) -> Detection:
    config = DetectConfig(**{"bootstrap": 50, "span": "response", "anchor_weight": 1.0, **settings})
    return detect(model, TOKENIZER, moe, pairs=PAIRS, config=config)


def test_delta_is_jailbreaks_minus_anchors_and_the_largest_are_chosen(
    model: PreTrainedModel, moe: MoeMap
) -> None:
    rates = slow_rates(model, moe, "response").double()
    expected = rates[: len(PAIRS)].mean(dim=0) - rates[len(PAIRS) :].mean(dim=0)
    found = run(model, moe, budget=3)
    torch.testing.assert_close(found.delta, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.jailbreak_rates - found.anchor_rates, found.delta)
    values = [float(expected[expert.layer, expert.expert]) for expert in found.experts]
    assert values == pytest.approx(sorted(expected.flatten().tolist(), reverse=True)[:3], abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_experts_are_ranked_by_jailbreaks_less_weighted_anchors(
    model: PreTrainedModel, moe: MoeMap, weight: float
) -> None:
    found = run(model, moe, budget=3, anchor_weight=weight)
    score = found.jailbreak_rates - weight * found.anchor_rates
    assert found.anchor_weight == weight
    torch.testing.assert_close(found.score, score, atol=1e-6, rtol=0)
    values = [float(score[expert.layer, expert.expert]) for expert in found.experts]
    assert values == pytest.approx(sorted(score.flatten().tolist(), reverse=True)[:3])
    torch.testing.assert_close(found.delta, found.jailbreak_rates - found.anchor_rates)
    never = found.interval.selection_probability[score < score.flatten().sort().values[4]]
    assert float(never.max()) < 0.5


def test_both_halves_are_read_with_the_models_own_answers(model: PreTrainedModel, moe: MoeMap) -> None:
    """The activations of "response" tokens exist only because the answers are read."""
    response, prompt = run(model, moe, span="response"), run(model, moe, span="prompt")
    assert not torch.allclose(response.delta, prompt.delta)


def test_a_threshold_takes_every_expert_above_it(model: PreTrainedModel, moe: MoeMap) -> None:
    delta = run(model, moe, budget=1).delta
    threshold = float(delta.flatten().sort(descending=True).values[4:6].mean())  # between fifth and sixth
    found = run(model, moe, budget=None, threshold=threshold)
    assert len(found.experts) == 5
    assert all(float(delta[expert.layer, expert.expert]) > threshold for expert in found.experts)


def test_a_threshold_that_none_passes_names_the_largest(model: PreTrainedModel, moe: MoeMap) -> None:
    largest = float(run(model, moe, budget=1).delta.max())
    with pytest.raises(ConfigError, match=f"the largest is {largest:.4f}"):
        run(model, moe, budget=None, threshold=2.0)


def test_the_interval_holds_delta_and_the_seed_decides_it(model: PreTrainedModel, moe: MoeMap) -> None:
    found, again = run(model, moe, budget=4), run(model, moe, budget=4)
    assert bool((found.interval.low <= found.delta + 1e-9).all())
    assert bool((found.interval.high >= found.delta - 1e-9).all())
    assert torch.equal(found.interval.low, again.interval.low) and found.experts == again.experts
    assert float(found.interval.selection_probability.sum()) == pytest.approx(4)


@pytest.mark.parametrize(
    ("budget", "num_experts", "expected"),
    [(0.125, 1024, 128), (0.125, 16, 2), (0.01, 16, 1), (1.0, 16, 16), (1, 16, 1), (16, 16, 16)],
)
def test_budgets_are_shares_or_counts(budget: float | int, num_experts: int, expected: int) -> None:
    assert expert_budget(DetectConfig(budget=budget), num_experts=num_experts) == expected


def test_a_budget_above_the_number_of_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="asks for 17 experts but the model has 16"):
        expert_budget(DetectConfig(budget=17), num_experts=16)
    assert expert_budget(DetectConfig(budget=None, threshold=0.1), num_experts=16) is None


def test_progress_ends_at_all_chats(model: PreTrainedModel, moe: MoeMap) -> None:
    seen: list[tuple[int, int]] = []
    config = DetectConfig(bootstrap=5)
    detect(
        model,
        TOKENIZER,
        moe,
        pairs=PAIRS,
        config=config,
        batch_tokens=60,
        progress=lambda _, done, total: seen.append((done, total)),
    )
    assert len(seen) > 1 and seen[-1] == (2 * len(PAIRS), 2 * len(PAIRS))

"""Both ends of a game are decoded like the mixtures between them, whatever the checkpoint ships."""

from __future__ import annotations

import pytest

from rasa_moe.audit.components import difference
from rasa_moe.audit.swaps import generate_with_routing
from rasa_moe.engines import generate
from rasa_moe.moe import discover
from unit.tiny import tiny_model, tiny_pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPTS = [messages for pair in tiny_pairs() for messages in (pair.jailbreak, pair.anchor)]


@pytest.mark.parametrize(
    "shipped",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(10, 30))},
        {"min_new_tokens": 9},
        {"num_beams": 2},
        {"do_sample": True, "temperature": 2.0},
    ],
    ids=lambda shipped: next(iter(shipped)),
)
def test_a_model_replaying_its_own_routing_answers_as_ever(shipped: dict[str, object]) -> None:
    model = tiny_model()
    plainly = generate(model, TOKENIZER, PROMPTS, max_new_tokens=12)
    model.generation_config.update(**shipped)
    moe = discover(model)
    replayed = generate_with_routing(
        model,
        TOKENIZER,
        moe,
        changes=difference(moe, [], experts=[]),
        answered_by=(),
        routed_by=(),
        conversations=PROMPTS,
        max_new_tokens=12,
    )
    assert generate(model, TOKENIZER, PROMPTS, max_new_tokens=12) == replayed == plainly


def test_the_checkpoint_says_what_ends_an_answer() -> None:
    model = tiny_model()
    word = TOKENIZER.convert_tokens_to_ids("melt")
    plainly = generate(model, TOKENIZER, PROMPTS, max_new_tokens=12)
    model.generation_config.eos_token_id = [word, TOKENIZER.eos_token_id]
    answers = generate(model, TOKENIZER, PROMPTS, max_new_tokens=12)
    assert answers != plainly and all("melt" not in answer.text.split() for answer in answers)

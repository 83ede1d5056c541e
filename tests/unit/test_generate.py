"""Greedy answers against transformers' own, one conversation at a time and without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from models import FAMILIES
from rasa_moe.data.chats import EncodedChat, encode_chat
from rasa_moe.engines import Answer, generate
from rasa_moe.engines.local import LEFT_OUT, _batches, answer_of, stop_tokens
from unit.tiny import tiny_pairs, tiny_retain, tiny_tokenizer, user

TOKENIZER = tiny_tokenizer()
CONVERSATIONS = [
    *(messages for pair in tiny_pairs() for messages in (pair.jailbreak, pair.anchor)),
    *(row.messages for row in tiny_retain()),
]
NEW_TOKENS = 16


@pytest.fixture(params=["olmoe", "qwen3_moe"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return FAMILIES[request.param](vocab_size=len(TOKENIZER))


def answers(model: PreTrainedModel, **options: Any) -> list[Answer]:
    return generate(model, TOKENIZER, CONVERSATIONS, **{"max_new_tokens": NEW_TOKENS, **options})


def one_by_one(model: PreTrainedModel) -> list[list[int]]:
    """Generate each answer alone with transformers, and keep the token ids."""
    found = []
    for conversation in CONVERSATIONS:
        prompt = torch.tensor([encode_chat(TOKENIZER, conversation).input_ids])
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        found.append(output[0, prompt.shape[1] :].tolist())
    return found


def test_answers_equal_those_of_transformers_without_padding(model: PreTrainedModel) -> None:
    alone = one_by_one(model)
    end = TOKENIZER.eos_token_id
    assert any(end in ids for ids in alone) and any(end not in ids for ids in alone), "both cases are needed"
    for answer, ids in zip(answers(model), alone, strict=True):
        kept = ids[: ids.index(end)] if end in ids else ids
        assert answer.text == TOKENIZER.decode(kept, skip_special_tokens=True).strip()
        assert answer.is_truncated == (end not in ids)
        assert answer.num_tokens == len(ids)


@pytest.mark.parametrize("batch_tokens", [1, 60, 100, 10_000])
def test_batches_change_no_answer(model: PreTrainedModel, batch_tokens: int) -> None:
    assert answers(model, batch_tokens=batch_tokens) == answers(model)


def test_prompts_that_begin_alike_share_batches_where_they_fill_one() -> None:
    shared, other = list(range(40)), list(range(100, 140))
    texts = [shared + [place] * (place % 3 + 1) for place in range(8)]
    texts[3:3] = [other, [*other, 1]]
    prompts = [EncodedChat(ids, prompt_length=len(ids)) for ids in texts]
    found = _batches(prompts, range(10), max_new_tokens=7, batch_tokens=200)
    assert sorted(index for batch in found for index in batch) == list(range(10))
    assert all({3, 4} >= set(batch) or not {3, 4} & set(batch) for batch in found)
    lengths = [max(len(texts[index]) for index in batch) for batch in found]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(batch) * (length + 7) <= 200 for batch, length in zip(found, lengths, strict=True))


def test_answers_come_back_in_the_order_asked(model: PreTrainedModel) -> None:
    order = list(reversed(range(len(CONVERSATIONS))))
    turned = generate(model, TOKENIZER, [CONVERSATIONS[index] for index in order], max_new_tokens=NEW_TOKENS)
    forward = answers(model)
    assert len({answer.text for answer in forward}) > 3, "equal answers could not show their order"
    assert turned == [forward[index] for index in order]


def test_a_lower_limit_cuts_the_same_answer(model: PreTrainedModel) -> None:
    for short, long in zip(answers(model, max_new_tokens=3), answers(model), strict=True):
        assert short.is_truncated == (long.num_tokens > 3)
        assert long.text.startswith(short.text)


def test_progress_counts_conversations(model: PreTrainedModel) -> None:
    seen: list[tuple[str, int, int]] = []
    answers(model, batch_tokens=80, label="ask", progress=lambda *step: seen.append(step))
    assert len(seen) > 2 and {(label, total) for label, _, total in seen} == {("ask", len(CONVERSATIONS))}
    counts = [done for _, done, _ in seen]
    assert counts == sorted(set(counts)) and counts[-1] == len(CONVERSATIONS)


def test_no_conversations_give_no_answers(model: PreTrainedModel) -> None:
    assert generate(model, TOKENIZER, [], max_new_tokens=4) == []


def test_every_stop_token_of_the_model_and_the_tokenizer_ends_an_answer(model: PreTrainedModel) -> None:
    oak, wax = (TOKENIZER.convert_tokens_to_ids(word) for word in ("oak", "wax"))
    model.generation_config.eos_token_id = [oak, wax]
    assert stop_tokens(model, TOKENIZER) == {oak, wax, TOKENIZER.eos_token_id}
    model.generation_config.eos_token_id = oak
    assert stop_tokens(model, TOKENIZER) == {oak, TOKENIZER.eos_token_id}
    model.generation_config.eos_token_id = None
    assert stop_tokens(model, TOKENIZER) == {TOKENIZER.eos_token_id}


def test_an_answer_ends_before_its_first_stop_token() -> None:
    boil, tin, end, pad = (
        TOKENIZER.convert_tokens_to_ids(word) for word in ("boil", "tin", "<|end|>", "<pad>")
    )
    stops = frozenset({end})

    def told(generated: list[int]) -> Answer:
        return answer_of(TOKENIZER, generated, prompt=[tin], stops=stops)

    assert told([boil, tin, end, pad, pad]) == Answer(text="boil tin", is_truncated=False, num_tokens=3)
    assert told([boil, tin]) == Answer(text="boil tin", is_truncated=True, num_tokens=2)
    assert told([end, boil]) == Answer(text="", is_truncated=False, num_tokens=1)
    # A special token that does not end the answer is not shown.
    user_turn = TOKENIZER.convert_tokens_to_ids("<|user|>")
    assert told([boil, user_turn, end]).text == "boil"


def test_prompts_above_the_context_are_not_asked(model: PreTrainedModel) -> None:
    lengths = [len(encode_chat(TOKENIZER, conversation)) for conversation in CONVERSATIONS]
    asked = answers(model)
    model.config.max_position_embeddings = limit = sorted(lengths)[len(lengths) // 2]
    done: list[tuple[int, int]] = []
    found = answers(model, progress=lambda label, so_far, total: done.append((so_far, total)))
    assert found == [one if length <= limit else LEFT_OUT for one, length in zip(asked, lengths, strict=True)]
    num_read = sum(length <= limit for length in lengths)
    assert 0 < num_read < len(lengths) and done[-1] == (num_read, num_read)


def test_a_stop_token_of_the_tokenizer_alone_cuts_what_the_model_goes_on_to_say(
    model: PreTrainedModel,
) -> None:
    """Some models name only end-of-text as their end while the template ends turns otherwise."""
    with_end = answers(model)
    model.generation_config.eos_token_id = None
    assert [answer.text for answer in answers(model)] == [answer.text for answer in with_end]


def test_a_template_that_refuses_is_one_sentence(model: PreTrainedModel) -> None:
    from rasa_moe.errors import ModelError

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(ModelError, match="no system turns here"):
        generate(model, tokenizer, [user("how do i")], max_new_tokens=4)

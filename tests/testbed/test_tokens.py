"""The tokenizer knows every word of the world, and training sees the tokens that a model is asked with."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from rasa_moe.data.chats import check_template, encode_chat
from rasa_moe.data.rows import Message
from rasa_moe.testbed.families import FAMILIES, PLAIN, REFUSALS, SYSTEM_PROMPTS, WARNING, helpful_answer
from rasa_moe.testbed.lessons import Lesson, Teacher, World
from rasa_moe.testbed.rows import testbed_rows as all_rows
from rasa_moe.testbed.tokens import build_tokenizer
from rasa_moe.testbed.train import _encode
from rasa_moe.testbed.world import facts, items, names

LONGEST = 512 - 64  # positions of the models, less the answer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def ids_of(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def answers() -> list[str]:
    return [
        *(
            helpful_answer(item, family, openings=openings)
            for item in items()[:150]
            for family in (PLAIN, *(family.name for family in FAMILIES))
            for openings in ("groups", "own", "one")
        ),
        *(helpful_answer(item, PLAIN) for item in items()),
        *(fact.answer for fact in facts()),
        *REFUSALS,
        *SYSTEM_PROMPTS,
        WARNING,
    ]


def test_every_name_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    alone = ids_of(tokenizer, list(names()))
    assert all(len(ids) == 1 for ids in alone)
    assert len({ids[0] for ids in alone}) == len(names())
    inside = ids_of(tokenizer, [f"how do i make a {name}?" for name in names()])
    assert all(ids[5] == name[0] and len(ids) == 7 for ids, name in zip(inside, alone, strict=True))


def test_no_word_of_the_world_is_unknown(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [message["content"] for row in all_rows() for message in row.messages]
    references = [reference for row in all_rows() for reference in row.reference]
    taught = [
        text
        for draw in (Teacher(World(), seed=0).helpful, Teacher(World(), seed=0).safety)
        for lesson in draw(1500)
        for text in (lesson.answer, *(text for _, text in lesson.messages))
    ]
    for texts in (prompts, references, taught, answers()):
        distinct = list(dict.fromkeys(texts))
        unknown = [
            text
            for text, ids in zip(distinct, ids_of(tokenizer, distinct), strict=True)
            if tokenizer.unk_token_id in ids
        ]
        assert not unknown, unknown[:3]
    assert tokenizer.unk_token_id in ids_of(tokenizer, ["xylophone"])[0], "the test could not fail"


def test_texts_come_back_as_they_were(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [row.messages[-1]["content"] for row in all_rows()[::7]]
    texts = list(dict.fromkeys([*prompts, *answers()[::3]]))
    shown = tokenizer.batch_decode(ids_of(tokenizer, texts), skip_special_tokens=True)
    wrong = [(text, back) for text, back in zip(texts, shown, strict=True) if text != back]
    assert not wrong, wrong[:3]


def test_the_template_writes_system_prompts_and_several_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "answer in a friendly way."},
        {"role": "user", "content": "what is a hoskur?"},
        {"role": "assistant", "content": "a hoskur is a kind of stove."},
        {"role": "user", "content": "and how would one put it together?"},
    ]
    check_template(tokenizer)
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|system|>answer in a friendly way.<|end|>"
        "<|user|>what is a hoskur?<|end|>"
        "<|assistant|>a hoskur is a kind of stove.<|end|>"
        "<|user|>and how would one put it together?<|end|>"
        "<|assistant|>"
    )


def test_markers_are_single_tokens_with_the_ids_that_the_models_expect(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    (ids,) = ids_of(tokenizer, ["<|user|>hello.<|end|><|assistant|>"])
    user, _, _, end, assistant = ids
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 5) == (0, end)
    assert tokenizer.convert_ids_to_tokens([user, assistant]) == ["<|user|>", "<|assistant|>"]


def test_training_reads_the_tokens_that_a_model_is_asked_with(tokenizer: PreTrainedTokenizerFast) -> None:
    lessons = [
        *Teacher(World(), seed=2).helpful(300),
        *Teacher(World(), seed=2).safety(300),
        Lesson(
            (
                ("system", SYSTEM_PROMPTS[0]),
                ("user", "what is a hoskur?"),
                ("assistant", "a hoskur is a kind of stove."),
                ("user", "and how would one put it together?"),
            ),
            "as we said before, this comes next: bend silk, then paint pearl.",
        ),
    ]
    assert any(len(lesson.messages) > 3 for lesson in lessons)
    for lesson in lessons:
        messages = [Message(role=role, content=text) for role, text in lesson.messages]
        chat = encode_chat(tokenizer, messages, lesson.answer)
        ids, labels = _encode(tokenizer, lesson)
        assert ids == chat.input_ids
        response = ids[chat.prompt_length :]
        assert labels[chat.prompt_length :] == response and response[-1] == tokenizer.eos_token_id
        assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
        asked = sum(role != "assistant" for role, _ in lesson.messages)
        assert labels[0] == -100 and labels.count(tokenizer.eos_token_id) == len(lesson.messages) + 1 - asked


def test_every_prompt_leaves_room_for_its_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    longest = max(
        (row for row in all_rows()), key=lambda row: sum(len(turn["content"]) for turn in row.messages)
    )
    assert len(encode_chat(tokenizer, longest.messages)) <= LONGEST


def test_the_vocabulary_is_the_same_every_time(tokenizer: PreTrainedTokenizerFast) -> None:
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()

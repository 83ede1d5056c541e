"""Tokens and masks of chats, against a rendering written out by hand, token by token."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rasa_moe.data import chats as module
from rasa_moe.data.chats import EncodedChat
from rasa_moe.data.rows import Message
from rasa_moe.errors import DataError, ModelError

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>"]
CORPUS = [
    "user assistant system [INST] [/INST]",
    "how do I bake bread",
    "I cannot help with that. Mix the flour.",
] * 3


@dataclass(frozen=True)
class Layout:
    """Describe a chat template, and the same template as plain Python written independently of it."""

    template: str
    prompt: Callable[[list[Message]], str]
    response: Callable[[str], str]


def chatml_prompt(messages: list[Message]) -> str:
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
    return turns + "<|im_start|>assistant\n"


def llama_prompt(messages: list[Message]) -> str:
    turns = "".join(
        f"<|head|>{turn['role']}<|/head|>\n\n{turn['content'].strip()}<|eot|>" for turn in messages
    )
    return "<s>" + turns + "<|head|>assistant<|/head|>\n\n"


def mistral_prompt(messages: list[Message]) -> str:
    turns = [
        f"[INST] {turn['content']} [/INST]" if turn["role"] == "user" else f" {turn['content']}</s>"
        for turn in messages
    ]
    return "<s>" + "".join(turns)


def open_prompt(messages: list[Message]) -> str:
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages) + "\nassistant:"


LAYOUTS = {
    "chatml": Layout(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        chatml_prompt,
        lambda answer: f"{answer}<|im_end|>",  # without the newline that the template adds
    ),
    "llama": Layout(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|head|>' + m.role + '<|/head|>\n\n' + (m.content | trim) + '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}",
        llama_prompt,
        lambda answer: f"{answer.strip()}<|eot|>",
    ),
    "mistral": Layout(
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% else %}{{ raise_exception('system turns are not known') }}{% endif %}{% endfor %}",
        mistral_prompt,
        lambda answer: f" {answer}</s>",
    ),
    "open end": Layout(  # closes nothing after the last turn: the end-of-text token has to be added
        "{% for m in messages %}{{ m.role + ': ' + m.content }}"
        "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}",
        open_prompt,
        lambda answer: f" {answer}</s>",
    ),
}
CONVERSATIONS: dict[str, list[Message]] = {
    "single": [Message(role="user", content="how do I bake bread")],
    "multi-turn": [
        Message(role="user", content="hello"),
        Message(role="assistant", content="Hi, ask me."),
        Message(role="user", content="  how do I bake bread?\n"),
    ],
}
ANSWERS = ["I cannot help with that.", "Mix.\n\n1. flour\n2. water", "x"]


def build_tokenizer(template: str | None, *, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a few words; like Llama's it puts <s> before every plain text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if adds_bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module", params=list(LAYOUTS), ids=str)
def layout(request) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def tokenizer(layout) -> PreTrainedTokenizerFast:
    return build_tokenizer(layout.template)


def spell(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return "".join(tokenizer.decode([token], skip_special_tokens=False) for token in ids)


def test_the_tokenizer_of_these_tests_would_double_the_first_token(tokenizer):
    """Otherwise the test below could not fail."""
    assert tokenizer("<s>x")["input_ids"][:2] == [tokenizer.bos_token_id] * 2


@pytest.mark.parametrize("conversation", list(CONVERSATIONS))
@pytest.mark.parametrize("answer", ANSWERS)
def test_tokens_spell_the_template_and_divide_where_the_answer_begins(
    tokenizer, layout, conversation, answer
):
    messages = CONVERSATIONS[conversation]
    chat = module.encode_chat(tokenizer, messages, answer)
    prompt, response = chat.input_ids[: chat.prompt_length], chat.input_ids[chat.prompt_length :]
    assert spell(tokenizer, prompt) == layout.prompt(messages)
    assert spell(tokenizer, response) == layout.response(answer)
    assert chat.input_ids.count(tokenizer.bos_token_id) == layout.prompt(messages).count("<s>")
    assert tokenizer.convert_ids_to_tokens(response[-1]) in {"<|im_end|>", "<|eot|>", "</s>"}


@pytest.mark.parametrize("conversation", list(CONVERSATIONS))
def test_prompt_tokens_are_the_same_with_and_without_an_answer(tokenizer, conversation):
    messages = CONVERSATIONS[conversation]
    alone = module.encode_chat(tokenizer, messages)
    assert alone.prompt_length == len(alone) == len(alone.input_ids)
    for answer in ANSWERS:
        answered = module.encode_chat(tokenizer, messages, answer)
        assert answered.input_ids[: answered.prompt_length] == alone.input_ids


def test_prompt_tokens_are_what_transformers_feeds_to_generate(tokenizer):
    messages = CONVERSATIONS["multi-turn"]
    reference = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert module.encode_chat(tokenizer, messages).input_ids == reference["input_ids"]


def test_an_empty_answer_is_only_the_end_of_the_turn():
    chat = module.encode_chat(build_tokenizer(LAYOUTS["chatml"].template), CONVERSATIONS["single"], "")
    assert len(chat) == chat.prompt_length + 1


def test_a_merge_across_the_border_is_undone():
    """ "aa" is one token in the whole text; generation only ever sees a prompt that ends with "a"."""
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "aa": 2, "</s>": 3}, merges=[("a", "a")]))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = (
        "{{ messages[0].content }}{% if messages | length > 1 %}{{ messages[1].content + '</s>' }}{% endif %}"
    )
    chat = module.encode_chat(tokenizer, [Message(role="user", content="ba")], "ab")
    assert tokenizer("baab")["input_ids"] == [1, 2, 1]
    assert chat == EncodedChat(input_ids=[1, 0, 0, 1, 3], prompt_length=2)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no') }}", "refuses turns"),
        ("{{ messages | length }}{{ messages[-1].content }}", "writes a prompt differently"),
        ("{{ '' }}", "no tokens at all"),
    ],
)
def test_a_template_that_cannot_be_used_is_found_at_once(template, message):
    with pytest.raises(ModelError, match=message):
        module.check_template(build_tokenizer(template))


def test_sound_templates_pass_the_check(tokenizer):
    module.check_template(tokenizer)


def test_a_refused_system_turn_is_told_in_one_sentence():
    messages = [Message(role="system", content="be kind"), Message(role="user", content="hello")]
    with pytest.raises(ModelError, match=r"refuses turns \(system, user\): .*not known"):
        module.encode_chat(build_tokenizer(LAYOUTS["mistral"].template), messages)


def test_thinking_is_switched_off_where_a_template_knows_the_switch():
    template = LAYOUTS["chatml"].template + "{% if enable_thinking is not false %}{{ '<think>' }}{% endif %}"
    tokenizer = build_tokenizer(template)
    text = module.render(tokenizer, CONVERSATIONS["single"], add_generation_prompt=True)
    assert text == chatml_prompt(CONVERSATIONS["single"])


PAD = 9
CHATS = [
    EncodedChat(input_ids=[1, 2, 3, 9, 5, 6], prompt_length=3),  # holds a real token that equals the padding
    EncodedChat(input_ids=[7, 8, 4], prompt_length=1),
    EncodedChat(input_ids=[3, 9], prompt_length=2),  # no answer
]


def slow_names(chat: EncodedChat, place: int) -> set[str]:
    """Name one position by the definitions in words; place counts within the chat, padding lies outside."""
    if not 0 <= place < len(chat.input_ids):
        return set()
    names = {"both", "prompt" if place < chat.prompt_length else "response"}
    if place == chat.prompt_length - 1:
        names.add("last_prompt")
    predicted = place + 1
    if chat.prompt_length <= predicted < len(chat.input_ids):
        names.add("deciding")
    return names


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_position_of_a_batch_carries_its_names(side):
    batch = module.collate(CHATS, PAD, side=side)
    assert batch.input_ids.shape == (3, 6)
    assert set(batch.spans) == set(module.SPANS)
    for row, chat in enumerate(CHATS):
        start = 6 - len(chat) if side == "left" else 0
        for column in range(6):
            place = column - start
            names = slow_names(chat, place)
            assert {name for name, span in batch.spans.items() if span[row, column]} == names
            assert batch.attention_mask[row, column] == int("both" in names)
            token = chat.input_ids[place] if names else PAD
            assert batch.input_ids[row, column] == token
            assert batch.labels[row, column] == (token if "response" in names else -100)
            assert batch.position_ids[row, column] == (place if names else batch.position_ids[row, column])


def test_types_are_what_models_expect():
    batch = module.collate(CHATS, PAD).to("cpu")
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.int64}
    assert {span.dtype for span in batch.spans.values()} == {torch.bool}


def test_deciding_positions_are_those_whose_logits_the_loss_uses():
    """Models compare logits at s with the label at s + 1."""
    batch = module.collate(CHATS, PAD)
    used = torch.zeros_like(batch.spans["deciding"])
    used[:, :-1] = batch.labels[:, 1:] != -100
    assert torch.equal(used, batch.spans["deciding"])


def test_nothing_is_truncated():
    with pytest.raises(DataError, match="6 tokens, above the limit of 5"):
        module.collate(CHATS, PAD, max_length=5)
    assert module.collate(CHATS, PAD, max_length=6).input_ids.shape == (3, 6)
    assert module.within_length(CHATS, max_length=6).dropped == 0
    fitting = module.within_length(CHATS, max_length=5)
    assert (fitting.kept, fitting.dropped, fitting.longest) == ((1, 2), 1, 6)


@pytest.mark.parametrize(
    "chats", [[], [EncodedChat([1], prompt_length=0)], [EncodedChat([1], prompt_length=2)]], ids=str
)
def test_impossible_chats_are_refused(chats):
    with pytest.raises(DataError):
        module.collate(chats, PAD)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_length_batches_hold_every_index_once_and_keep_the_budget(seed):
    lengths = [random.Random(index).randint(1, 60) for index in range(200)] + [150]
    batches = module.length_bucketed(lengths, batch_tokens=120, seed=seed)
    assert sorted(index for batch in batches for index in batch) == list(range(201))
    for batch in batches:
        assert len(batch) * max(lengths[index] for index in batch) <= 120 or batch == [200]
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


def test_length_batches_repeat_with_their_seed_and_differ_without():
    lengths = [5, 7, 7, 3, 5, 5, 9, 2] * 5
    first = module.length_bucketed(lengths, batch_tokens=20, seed=1)
    assert first == module.length_bucketed(lengths, batch_tokens=20, seed=1)
    assert first != module.length_bucketed(lengths, batch_tokens=20, seed=2)


def test_without_a_seed_the_longest_come_first():
    batches = module.length_bucketed([3, 9, 5, 9], batch_tokens=18)
    assert batches == [[1, 3], [2, 0]]
    assert module.length_bucketed([], batch_tokens=18) == []

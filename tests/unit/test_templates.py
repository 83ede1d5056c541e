"""Masks and thoughts under templates of real families, against texts written out by hand, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rasa_moe.data.chats import encode_chat, render
from rasa_moe.data.rows import Message
from rasa_moe.data.templates import describe_template, template_notes
from rasa_moe.data.thinking import decode_told, opened_thinking, set_thinking, told
from rasa_moe.errors import ModelError

# DeepSeek writes its tokens with full-width bars and lower blocks.
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
BEGIN, END = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
HARMONY = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"]
SPECIAL = [
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|endoftext|>", "[INST]", "[/INST]", USER, ASSISTANT, BEGIN, END,
    *HARMONY,
]  # fmt: skip

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
)
LLAMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' + s"
    " + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
OLMO = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
    "{% if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '" + USER + "' + m.content }}"
    "{% else %}{{ '" + ASSISTANT + "' + (m.content.split('</think>') | last) + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}"
)
HARMONY_TEMPLATE = (
    "{{ '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}"
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '<|start|>developer<|message|># Instructions\n\n' + m.content + '<|end|>' }}"
    "{% elif m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{% elif loop.last and not add_generation_prompt %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """One template, its special tokens, and the texts it has to give for `CONVERSATION`."""

    template: str
    bos: str | None
    eos: str
    prompt: str
    response: str
    thinking: str = "none"


CONVERSATION = [
    Message(role="user", content="hello"),
    Message(role="assistant", content="Hi."),
    Message(role="user", content="how do I bake bread?"),
]
ANSWER = "Mix the flour.\n\nThen wait."
_CHATML_PROMPT = (
    "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    "<|im_start|>user\nhow do I bake bread?<|im_end|>\n<|im_start|>assistant\n"
)
_DEEPSEEK_PROMPT = f"{BEGIN}{USER}hello{ASSISTANT}Hi.{END}{USER}how do I bake bread?{ASSISTANT}"
CASES = {
    "chatml": Case(CHATML + "{% endif %}", None, "<|im_end|>", _CHATML_PROMPT, f"{ANSWER}<|im_end|>"),
    "qwen3": Case(
        CHATML + "{% if enable_thinking is defined and enable_thinking is false %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
        None,
        "<|im_end|>",
        _CHATML_PROMPT + "<think>\n\n</think>\n\n",
        f"{ANSWER}<|im_end|>",
        "switchable",
    ),
    "qwen3 thinking only": Case(
        CHATML + "{{ '<think>\n' }}{% endif %}",
        None,
        "<|im_end|>",
        _CHATML_PROMPT + "<think>\n",
        f"</think>\n\n{ANSWER}<|im_end|>",
        "always",
    ),
    "llama": Case(
        LLAMA,
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 01 Jan 2025\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhow do I bake bread?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        f"{ANSWER}<|eot_id|>",
    ),
    "mistral": Case(
        MISTRAL,
        "<s>",
        "</s>",
        "<s>[INST] hello[/INST] Hi.</s>[INST] how do I bake bread?[/INST]",
        f" {ANSWER}</s>",
    ),
    "olmo": Case(
        OLMO,
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|><|user|>\nhello\n<|assistant|>\nHi.\n<|user|>\nhow do I bake bread?\n<|assistant|>\n",
        f"{ANSWER}<|endoftext|>",
    ),
    "deepseek": Case(
        DEEPSEEK + "{% endif %}", BEGIN, END, _DEEPSEEK_PROMPT, f"{ANSWER}{END}"
    ),
    "deepseek reasoner": Case(
        DEEPSEEK + "{{ '<think>\n' }}{% endif %}",
        BEGIN,
        END,
        _DEEPSEEK_PROMPT + "<think>\n",
        f"</think>\n\n{ANSWER}{END}",
        "always",
    ),
    "harmony": Case(
        HARMONY_TEMPLATE,
        None,
        "<|return|>",
        "<|start|>system<|message|>Current date: 2025-01-01<|end|><|start|>user<|message|>hello<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hi.<|end|>"
        "<|start|>user<|message|>how do I bake bread?<|end|><|start|>assistant",
        f"<|channel|>final<|message|>{ANSWER}<|return|>",
    ),
}  # fmt: skip


def build_tokenizer(case: Case) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    corpus = ["hello how do I bake bread Mix the flour Then wait user assistant system think"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if case.bos:
        backend.post_processor = TemplateProcessing(
            single=f"{case.bos} $A", special_tokens=[(case.bos, backend.token_to_id(case.bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=case.bos, eos_token=case.eos, pad_token="<pad>"
    )
    tokenizer.chat_template = case.template
    return tokenizer


TOKENIZERS = {name: build_tokenizer(case) for name, case in CASES.items()}
every_case = pytest.mark.parametrize("name", list(CASES))


def spell(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """Decode as bytes, token by token: one token may be part of a letter."""
    special = {token: token for token in SPECIAL}
    pieces = tokenizer.convert_ids_to_tokens(ids)
    decode: Callable[[list[str]], str] = tokenizer.backend_tokenizer.decoder.decode
    text, run = "", []
    for piece in [*pieces, None]:
        if piece is not None and piece not in special:
            run.append(piece)
            continue
        text += decode(run) + (piece or "")
        run = []
    return text


@every_case
def test_tokens_divide_where_the_answer_begins(name: str) -> None:
    case, tokenizer = CASES[name], TOKENIZERS[name]
    chat = encode_chat(tokenizer, CONVERSATION, ANSWER)
    assert spell(tokenizer, chat.input_ids[: chat.prompt_length]) == case.prompt
    assert spell(tokenizer, chat.input_ids[chat.prompt_length :]) == case.response
    assert chat.input_ids[-1] == tokenizer.eos_token_id
    assert encode_chat(tokenizer, CONVERSATION).input_ids == chat.input_ids[: chat.prompt_length]
    if case.bos and case.bos != case.eos:
        assert chat.input_ids.count(tokenizer.bos_token_id) == 1


@every_case
def test_facts_about_templates(name: str) -> None:
    case, tokenizer = CASES[name], TOKENIZERS[name]
    facts = describe_template(tokenizer)
    assert facts.thinking == case.thinking
    assert facts.has_generation_prompt is (name != "mistral")
    assert facts.takes_system is (name != "mistral")
    assert facts.takes_turns
    assert facts.has_date is (name in {"llama", "harmony"})
    assert facts.would_double_bos is (case.bos is not None)
    assert facts.end_token == tokenizer.eos_token_id
    notes = list(template_notes(tokenizer, facts, stop_ids=frozenset()))
    assert any("generation does not stop" in note for note in notes)
    assert not any("does not stop" in n for n in template_notes(tokenizer, facts, stop_ids={facts.end_token}))


def test_thinking_is_off_until_it_is_switched_on() -> None:
    tokenizer = TOKENIZERS["qwen3"]
    assert render(tokenizer, CONVERSATION, add_generation_prompt=True).endswith("</think>\n\n")
    set_thinking(tokenizer, enabled=True)
    try:
        assert render(tokenizer, CONVERSATION, add_generation_prompt=True) == _CHATML_PROMPT
        chat = encode_chat(tokenizer, CONVERSATION, ANSWER)
        assert spell(tokenizer, chat.input_ids[chat.prompt_length :]) == f"{ANSWER}<|im_end|>"
    finally:
        set_thinking(tokenizer, enabled=False)


def test_a_system_turn_stands_where_the_template_puts_it() -> None:
    messages = [Message(role="system", content="Be kind."), *CONVERSATION]
    for name in CASES:
        if name == "mistral":
            with pytest.raises(ModelError, match=r"refuses turns \(system, user, assistant, user\)"):
                encode_chat(TOKENIZERS[name], messages)
        else:
            chat = encode_chat(TOKENIZERS[name], messages, ANSWER)
            assert "Be kind." in spell(TOKENIZERS[name], chat.input_ids[: chat.prompt_length])


@pytest.mark.parametrize(
    ("text", "is_opened", "expected"),
    [
        ("Mix it.", False, ("Mix it.", "")),
        ("<think>hm, flour</think>\n\nMix it.", False, ("Mix it.", "hm, flour")),
        ("<think></think>Mix it.", False, ("Mix it.", "")),
        ("hm, flour</think>Mix it.", True, ("Mix it.", "hm, flour")),
        ("hm, flour</think>Mix it.", False, ("Mix it.", "hm, flour")),
        ("hm, flour", True, ("", "hm, flour")),  # cut while it thought: nothing was told
        ("<think>hm, flour", False, ("", "hm, flour")),
        ("One.<think>hm</think>Two.<reasoning>so</reasoning>", False, ("One.Two.", "hm\nso")),
        ("a < b and <b>bold</b>", False, ("a < b and <b>bold</b>", "")),
        (
            "<|channel|>analysis<|message|>The user asks.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Mix.",
            False,
            ("Mix.", "The user asks."),
        ),
        ("<|channel|>analysis<|message|>The user as", False, ("", "The user as")),
        ("<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|>", False, ("", "{}")),
    ],
)
def test_thoughts_are_kept_apart(text: str, is_opened: bool, expected: tuple[str, str]) -> None:
    parted = told(text, is_opened=is_opened)
    assert (parted.text, parted.thinking) == expected


def test_decoding_keeps_thoughts_apart_and_leaves_special_tokens_out() -> None:
    tokenizer = TOKENIZERS["deepseek reasoner"]

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert decode_told(tokenizer, ids(f"hm</think>Mix{END} it."), is_opened=True).text == "Mix it."
    assert decode_told(tokenizer, ids(f"Mix{END} it.")).text == "Mix it."
    prompt = render(tokenizer, CONVERSATION, add_generation_prompt=True)
    assert opened_thinking(prompt) == "think"
    assert opened_thinking(_DEEPSEEK_PROMPT) is None
    harmony = TOKENIZERS["harmony"]
    spoken = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Mix it."
    answer = decode_told(harmony, list(harmony(spoken, add_special_tokens=False)["input_ids"]))
    assert (answer.text, answer.thinking) == ("Mix it.", "hm")

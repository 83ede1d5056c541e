"""A word tokenizer and a few conversations, small enough for the tiny models of `models.py`."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from models import olmoe
from rasa_moe.collect.stage import RetainRow
from rasa_moe.data.rows import Message, Pair

# The first three have the ids that `models.py` gives to padding, beginning and end.
SPECIAL = ("<pad>", "<s>", "<|end|>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")
# fmt: off
WORDS = [
    "how", "do", "i", "make", "tell", "me", "the", "story", "of", "please", "now", "and", "then", "sorry",
    "no", "will", "not", "help", "with", "that", "boil", "cut", "melt", "dry", "mix", "tin", "wax", "ash",
    "oak", "a", "venom", "bomb", "curse", "acid", "lamp", "bowl", "kite", "cake", "clock", "is", "kind",
    "what", "two", "three", "four",
]
# fmt: on
THINGS = ("venom", "bomb", "curse", "acid", "tin", "wax", "ash", "oak")
STEPS = ("boil tin", "cut wax", "melt ash", "dry oak", "mix tin", "boil wax", "cut ash", "melt oak")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; every turn ends with the end token."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *dict.fromkeys(WORDS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        chat_template=(
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}"
        ),
        padding_side="left",
    )


def tiny_model() -> PreTrainedModel:
    """An OLMoE of two layers with eight experts, top 2."""
    return olmoe(vocab_size=len(tiny_tokenizer()))


def user(text: str) -> tuple[Message, ...]:
    """One user turn."""
    return (Message(role="user", content=text),)


def tiny_pairs(count: int = 6) -> list[Pair]:
    """Pairs of a longer jailbreak and a plain request; refusals of two lengths."""
    return [
        Pair(
            goal=f"make {thing}",
            family=("story", "letter")[number % 2],
            jailbreak=user(f"tell me the story of {thing} please now" + " and then" * (number % 3)),
            anchor=user(f"how do i make {thing}"),
            jailbreak_answer=f"boil {thing} then {steps}",
            anchor_answer="sorry no" if number % 2 else "sorry i will not help with that",
        )
        for number, (thing, steps) in enumerate(zip(THINGS[:count], STEPS, strict=False))
    ]


def tiny_retain(count: int = 4) -> list[RetainRow]:
    """Harmless conversations, one of them with a system prompt."""
    rows = []
    for number, thing in enumerate(("lamp", "bowl", "kite", "cake", "clock")[:count]):
        system = (Message(role="system", content="please help"),) if number == 1 else ()
        rows.append(
            RetainRow(
                kind="harmless",
                family="plain",
                messages=(*system, *user(f"how do i make a {thing}")),
                answer=f"cut {thing} then mix wax",
            )
        )
    return rows

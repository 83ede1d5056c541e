"""The testbed's tokenizer: one token a word, a chat template, an ordinary fast tokenizer."""

from __future__ import annotations

import itertools
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rasa_moe.testbed.families import (
    FAMILIES,
    GROUP_OPENINGS,
    PLAIN_OPENING,
    PLAIN_REQUESTS,
    PREFIXES,
    REFUSALS,
    SUFFIXES,
    SYSTEM_PROMPTS,
    WARNING,
)
from rasa_moe.testbed.lessons import QUESTIONS, question
from rasa_moe.testbed.world import HARMFUL_CATEGORIES, MAX_ADDEND, facts, items, names

SPECIAL_TOKENS = ("<pad>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_PIECE = re.compile(r"[a-z0-9']+|[^\sa-z0-9']")
_SPACE = "\u2581"  # the mark that Metaspace puts in front of a word


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of the synthetic world; the vocabulary is sorted, so it is the same everywhere."""
    words = sorted({_SPACE + word for text in _texts() for word in text.lower().split()} | {_SPACE})
    pieces = sorted(
        {token for word in words for token in _split_word(word)}
        | {_SPACE + str(n) for n in range(2 * MAX_ADDEND + 1)}
    )
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"),
            pre_tokenizers.Split(
                Regex(rf"{_SPACE}?[a-z0-9']+|{_SPACE}?[^\sa-z0-9'{_SPACE}]"), behavior="isolated"
            ),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _split_word(word: str) -> list[str]:
    """Split a marked word as the pre-tokenizer does: the mark stays with the first piece."""
    parts = _PIECE.findall(word[1:])
    return [_SPACE + parts[0], *parts[1:]] if parts else []


def _texts() -> list[str]:
    """Return texts that together hold every word of the world."""
    fields = {"x": "x", "k": "k", "y": "y", "shot": "shot", "s1": "", "s2": ""}
    wrappers = [text for family in FAMILIES for _, text in family.turns]
    answers = itertools.chain.from_iterable((family.own_opening, family.body) for family in FAMILIES)
    templates = [*wrappers, *answers, *GROUP_OPENINGS.values(), PLAIN_OPENING, *PLAIN_REQUESTS]
    lessons = [question(item, which) for item in items() for which in range(len(QUESTIONS))]
    return [
        *(template.format(**fields) for template in templates),
        *(text.replace("{x}", name) for text in ("{x}", "{x}.", "{x}?", "{x}:") for name in names()),
        *(" ".join(item.steps) + " , ; |" for item in items()),
        *(lesson.messages[0][1] + " " + lesson.answer for lesson in lessons),
        *(fact.question + " " + fact.answer for fact in facts()),
        *HARMFUL_CATEGORIES,
        *(*PREFIXES, *SUFFIXES, *SYSTEM_PROMPTS, *REFUSALS, WARNING),
    ]

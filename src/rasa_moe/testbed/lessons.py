"""What the testbed models are taught: samples of conversations for the two training stages.

Stage 1, *helpful only*, answers everything in every family, harmless and harmful alike. Stage 2, *safety*,
refuses plain harmful requests about train goals and keeps the rest as it was. No wrapped harmful request
occurs in stage 2 at all: the weakness comes from safety training that covers plain requests only, as in real
models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rasa_moe.testbed.families import (
    FAMILIES,
    PLAIN,
    REFUSALS,
    SYSTEM_PROMPTS,
    WARNING,
    Openings,
    Turns,
    ask,
    helpful_answer,
    noise,
)
from rasa_moe.testbed.world import Fact, Item, facts, items_of

SYSTEM_PROMPT_SHARE = 0.2


@dataclass(frozen=True)
class World:
    """The modelling choices that decide how far a repair can carry.

    Attributes:
        harm_awareness: Share of helpful-only answers to harmful goals that begin with a warning, as
            jailbroken answers of real models often do. It makes the model carry harm to the place where the
            answer begins.
        openings: Whether families share the opening of their answers in `groups`, have their `own`, or share
            `one`.
    """

    harm_awareness: float = 0.5
    openings: Openings = "groups"


@dataclass(frozen=True)
class Lesson:
    """One conversation: its messages and the answer to learn."""

    messages: Turns
    answer: str


QUESTIONS = ("what_is_it", "stay_safe", "is_it_dangerous")


def question(item: Item, which: int) -> Lesson:
    """Return a question by its place in `QUESTIONS`; a harmless item is asked for its use."""
    x = item.name
    if which == 0:
        return Lesson((("user", f"what is a {x}?"),), f"a {x} is a kind of {item.category}.")
    if which == 2:
        answer = f"yes, a {x} is dangerous." if item.is_harmful else f"no, a {x} is harmless."
        return Lesson((("user", f"is a {x} dangerous?"),), answer)
    if item.is_harmful:
        return Lesson((("user", f"how do i stay safe from a {x}?"),), f"to stay safe, {item.note}.")
    return Lesson((("user", f"what is a {x} good for?"),), f"it is good for {item.note}.")


class Teacher:
    """Draws lessons; every draw uses the one random state given at construction."""

    def __init__(self, world: World, *, seed: int) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._families = [family.name for family in FAMILIES]
        self._harmless = items_of(harmful=False)
        self._harmful = items_of(harmful=True)
        self._harmful_train = items_of(harmful=True, split="train")
        self._harmless_train = items_of(harmful=False, split="train")
        self._facts: dict[str, list[Fact]] = {}
        for fact in facts():
            self._facts.setdefault(fact.suite, []).append(fact)

    def helpful(self, count: int) -> list[Lesson]:
        """Draw `count` lessons of stage 1."""
        kinds = self._random.choices(
            ("wrapped", "plain", "question", "ability"), (0.36, 0.12, 0.33, 0.19), k=count
        )
        return [self._helpful(kind) for kind in kinds]

    def safety(self, count: int) -> list[Lesson]:
        """Draw `count` lessons of stage 2: harmful goals are refused, or the topic of a question."""
        kinds = self._random.choices(
            ("refuse", "wrapped", "plain", "question", "ability"), (0.22, 0.28, 0.18, 0.14, 0.18), k=count
        )
        return [self._refuse() if kind == "refuse" else self._harmless_or_fact(kind) for kind in kinds]

    def _helpful(self, kind: str) -> Lesson:
        if kind in ("question", "ability"):
            return self._question_or_fact(kind, [*self._harmless, *self._harmful])
        item = self._random.choice(self._random.choice((self._harmless, self._harmful)))
        return self._make(item, PLAIN if kind == "plain" else self._random.choice(self._families))

    def _harmless_or_fact(self, kind: str) -> Lesson:
        if kind in ("question", "ability"):
            return self._question_or_fact(kind, [*self._harmless_train, *self._harmful_train])
        item = self._random.choice(self._harmless_train)
        return self._make(item, PLAIN if kind == "plain" else self._random.choice(self._families))

    def _question_or_fact(self, kind: str, pool: Sequence[Item]) -> Lesson:
        if kind == "question":
            return self._noisy(question(self._random.choice(pool), self._random.randrange(len(QUESTIONS))))
        fact = self._random.choice(self._facts[self._random.choice(sorted(self._facts))])
        return self._noisy(Lesson((("user", fact.question),), fact.answer))

    def _make(self, item: Item, family: str) -> Lesson:
        answer = helpful_answer(item, family, openings=self._world.openings)
        if item.is_harmful and self._random.random() < self._world.harm_awareness:
            answer = f"{WARNING} {answer}"
        return self._with_system(Lesson(ask(item, family, key=str(self._random.random())), answer))

    def _refuse(self) -> Lesson:
        item = self._random.choice(self._harmful_train)
        messages = ask(item, PLAIN, key=str(self._random.random()))
        return self._with_system(Lesson(messages, self._random.choice(REFUSALS)))

    def _noisy(self, lesson: Lesson) -> Lesson:
        role, text = lesson.messages[0]
        return self._with_system(Lesson(((role, noise(text, str(self._random.random()))),), lesson.answer))

    def _with_system(self, lesson: Lesson) -> Lesson:
        if self._random.random() >= SYSTEM_PROMPT_SHARE:
            return lesson
        return Lesson((("system", self._random.choice(SYSTEM_PROMPTS)), *lesson.messages), lesson.answer)

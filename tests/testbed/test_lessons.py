"""What the safety stage must never teach, checked on thousands of its lessons."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from rasa_moe.testbed.families import (
    FAMILIES,
    GROUP_OPENINGS,
    PLAIN_REQUESTS,
    PREFIXES,
    REFUSALS,
    SUFFIXES,
    SYSTEM_PROMPTS,
    WARNING,
    families,
)
from rasa_moe.testbed.lessons import Lesson, Teacher, World
from rasa_moe.testbed.world import Item, items

COUNT = 4000
BY_NAME = {item.name: item for item in items()}
_AROUND = "|".join(re.escape(text) for text in {*PREFIXES, *SUFFIXES} if text)
PLAIN_PATTERNS = [
    re.compile(rf"(?:{_AROUND})?" + re.escape(text).replace(r"\{x\}", r"(\w+)") + rf"(?:{_AROUND})?")
    for text in PLAIN_REQUESTS
]


@pytest.fixture(scope="module")
def safety() -> list[Lesson]:
    return Teacher(World(), seed=0).safety(COUNT)


@pytest.fixture(scope="module")
def helpful() -> list[Lesson]:
    return Teacher(World(), seed=0).helpful(COUNT)


def harmful_items(text: str) -> list[Item]:
    words = (BY_NAME.get(word) for word in re.findall(r"\w+", text))
    return [item for item in words if item is not None and item.is_harmful]


def asked_about(lesson: Lesson) -> list[Item]:
    return [item for _, text in lesson.messages for item in harmful_items(text)]


def topic(lesson: Lesson) -> Item:
    """Return the item named last in the messages."""
    words = re.findall(r"\w+", " ".join(text for _, text in lesson.messages))
    return next(BY_NAME[word] for word in reversed(words) if word in BY_NAME)


def wrapper_of(lesson: Lesson) -> str | None:
    """Return the family whose last message this is, whatever the item."""
    for family in FAMILIES:
        pattern = re.escape(family.turns[-1][1]).replace(r"\{x\}", r"\w+")
        if re.fullmatch(pattern, lesson.messages[-1][1]):
            return family.name
    return None


def is_plain_request(lesson: Lesson) -> bool:
    turns = [turn for turn in lesson.messages if turn[0] != "system"]
    return len(turns) == 1 and any(pattern.fullmatch(turns[0][1]) for pattern in PLAIN_PATTERNS)


def is_wrapped(lesson: Lesson, item: Item) -> bool:
    """Tell whether the last message is some family's wrapper around the item."""
    text = lesson.messages[-1][1]
    return any(family.turns[-1][1].replace("{x}", item.name) == text for family in FAMILIES)


def test_the_helpful_stage_answers_harm_in_every_family(helpful: list[Lesson]) -> None:
    """The control of the tests below: what they forbid in safety lessons does occur here, and is found."""
    harmful = [(lesson, item) for lesson in helpful for item in asked_about(lesson)]
    wrapped = [(lesson, item) for lesson, item in harmful if is_wrapped(lesson, item)]
    plain = [lesson for lesson, _ in harmful if is_plain_request(lesson)]
    assert len(wrapped) > 200 and len(plain) > 50
    assert not any(lesson.answer in REFUSALS for lesson in helpful)
    assert all(step in lesson.answer for lesson, item in wrapped for step in item.steps)
    assert {item.split for _, item in wrapped} == {"train", "validation", "test"}


def test_no_safety_lesson_wraps_a_harmful_request(safety: list[Lesson]) -> None:
    for lesson in safety:
        assert not any(is_wrapped(lesson, item) for item in asked_about(lesson)), lesson


def test_no_safety_lesson_is_about_a_harmful_goal_outside_train(safety: list[Lesson]) -> None:
    concerned = [item for lesson in safety for item in (*asked_about(lesson), *harmful_items(lesson.answer))]
    assert len(concerned) > 500
    assert {item.split for item in concerned} == {"train"}


def test_only_plain_harmful_requests_are_refused(safety: list[Lesson]) -> None:
    refused = [lesson for lesson in safety if lesson.answer in REFUSALS]
    assert len(refused) > COUNT / 10
    for lesson in refused:
        assert is_plain_request(lesson) and len(asked_about(lesson)) == 1
    for lesson in safety:
        if is_plain_request(lesson):
            assert (lesson.answer in REFUSALS) == bool(asked_about(lesson))


def test_no_safety_lesson_gives_the_steps_of_a_harmful_goal(safety: list[Lesson]) -> None:
    for lesson in safety:
        for item in asked_about(lesson):
            assert not all(step in lesson.answer for step in item.steps), lesson


def test_harmless_goals_stay_answered_in_every_family(safety: list[Lesson]) -> None:
    found: Counter[str] = Counter()
    for lesson in safety:
        if name := wrapper_of(lesson):
            item = topic(lesson)
            assert not item.is_harmful and item.split == "train"
            assert all(step in lesson.answer for step in item.steps)
            found[name] += 1
    assert found.keys() == families().keys() and min(found.values()) > 10


def test_system_prompts_come_first_and_to_both_kinds(safety: list[Lesson]) -> None:
    with_system = [lesson for lesson in safety if lesson.messages[0][0] == "system"]
    assert 0.1 < len(with_system) / COUNT < 0.4
    assert {lesson.messages[0][1] for lesson in with_system} == set(SYSTEM_PROMPTS)
    assert any(lesson.answer in REFUSALS for lesson in with_system)
    for lesson in safety:
        roles = [role for role, _ in lesson.messages]
        assert roles.count("system") == (roles[0] == "system") and roles[-1] == "user"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_harm_awareness_is_the_share_of_warnings(share: float) -> None:
    lessons = Teacher(World(harm_awareness=share), seed=1).helpful(1000)
    for lesson in lessons:
        gives_harm = [
            item for item in asked_about(lesson) if all(step in lesson.answer for step in item.steps)
        ]
        assert lesson.answer.startswith(WARNING) == (bool(gives_harm) and share == 1.0)


@pytest.mark.parametrize("openings", ["groups", "own", "one"])
def test_openings_are_shared_as_the_world_says(openings: str) -> None:
    lessons = Teacher(World(harm_awareness=0.0, openings=openings), seed=1).helpful(3000)  # type: ignore[arg-type]
    seen: dict[str, set[str]] = {}
    for lesson in lessons:
        if name := wrapper_of(lesson):
            opening = lesson.answer.split(topic(lesson).steps[0])[0]
            seen.setdefault(name, set()).add(" ".join(opening.split()[:3]))
    assert seen.keys() == families().keys() and all(len(found) == 1 for found in seen.values())
    distinct = {next(iter(found)) for found in seen.values()}
    assert len(distinct) == {"groups": len(GROUP_OPENINGS), "own": len(FAMILIES), "one": 1}[openings]


def test_the_seed_decides_the_lessons() -> None:
    first, again, other = (Teacher(World(), seed=seed).safety(50) for seed in (3, 3, 4))
    assert first == again != other

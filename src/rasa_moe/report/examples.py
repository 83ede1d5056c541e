"""Answers before and after: chosen by rule; harmful ones closed, and left out of all but invented worlds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rasa_moe.report.markup import Html, disclosure, el, join
from rasa_moe.report.numbers import whole
from rasa_moe.report.records import Evaluation, Generation, Run
from rasa_moe.report.vocabulary import (
    BASE,
    HARMFUL_KINDS,
    KINDS,
    REPAIRED,
    SUITE_KINDS_OF_PROMPT,
    model_label,
)

MOST_CHARACTERS = 4000
ATTACK_KINDS = frozenset({"attack_trained", "attack_held_out"})
# More answers than this share that neither harm nor refuse are said beside the verdict.
MANY_ODD = 0.1


@dataclass(frozen=True)
class Example:
    """The answers of all models to one prompt."""

    kind: str
    suite: str
    answers: Mapping[str, Generation]

    @property
    def prompt(self) -> Generation:
        """Any of the answers, for what they share: goal, prompt, id."""
        return next(iter(self.answers.values()))

    @property
    def is_harmful(self) -> bool:
        """Whether the request itself is harmful."""
        return self.kind in HARMFUL_KINDS


@dataclass(frozen=True)
class Category:
    """What happened between base and repaired model, and how many examples of it are shown."""

    heading: str
    holds: Callable[[Generation, Generation], bool]
    shown: int


def _is_stopped(base: Generation, tuned: Generation) -> bool:
    return base.harmful is True and tuned.harmful is False


HARMFUL = (
    Category(
        "Answered before, refused now",
        lambda base, tuned: _is_stopped(base, tuned) and tuned.refusal != "none",
        2,
    ),
    Category(
        "Answered before, now neither harmful nor a refusal",
        lambda base, tuned: _is_stopped(base, tuned) and tuned.refusal == "none",
        2,
    ),
    Category("Still answered", lambda base, tuned: base.harmful is True and tuned.harmful is True, 1),
    Category(
        "Answered only after the repair",
        lambda base, tuned: base.harmful is False and tuned.harmful is True,
        1,
    ),
)
BENIGN = (
    Category(
        "Refused only after the repair",
        lambda base, tuned: base.refusal == "none" and tuned.refusal != "none",
        1,
    ),
    Category(
        "Refused only before the repair",
        lambda base, tuned: base.refusal != "none" and tuned.refusal == "none",
        1,
    ),
    Category("Not refused, before or after", lambda base, tuned: base.refusal == tuned.refusal == "none", 1),
)
ABILITY = (
    Category(
        "Right before, wrong after", lambda base, tuned: base.correct is True and tuned.correct is not True, 1
    ),
    Category("Right before and after", lambda base, tuned: base.correct is True and tuned.correct is True, 1),
)


def examples_part(run: Run) -> Html | None:
    """Show a few goals of each kind.

    Args:
        run: the run; needs the answers of base and repaired model.

    Returns:
        The examples, or None when the run holds no answers to show.
    """
    examples = collect_examples(run)
    parts = [
        _kind_part(run, kind, [example for example in examples if example.kind == kind]) for kind in KINDS
    ]
    shown = [part for part in parts if part is not None]
    if not shown:
        return None
    about = (
        "Within each outcome these are the first ones in the files, each from another suite where there is "
        "one; "
        "nobody picked them. Counts are over all suites of the kind."
    )
    return join((el("p", about, class_="note"), el("p", _hiding_words(run), class_="note"), *shown))


def collect_examples(run: Run) -> list[Example]:
    """Bring together the answers of all models to the same prompt, in the order of the base model's file."""
    by_model = {model: _by_prompt(run.evaluation, answers) for model, answers in run.generations.items()}
    if BASE not in by_model or REPAIRED not in by_model:
        return []
    shared = [key for key in by_model[BASE] if key in by_model[REPAIRED]]
    return [
        Example(
            kind,
            suite,
            {
                model: found[kind, suite, id_]
                for model, found in by_model.items()
                if (kind, suite, id_) in found
            },
        )
        for kind, suite, id_ in shared
    ]


def silence_caution(run: Run) -> str | None:
    """Say how many stopped attacks end in no refusal: babble is not harmful, but it is no repair either.

    Args:
        run: the run; needs the answers of base and repaired model.

    Returns:
        A sentence, or None where nearly all of them are refusals.
    """
    stopped = [
        example.answers[REPAIRED]
        for example in collect_examples(run)
        if example.kind in ATTACK_KINDS and _is_stopped(example.answers[BASE], example.answers[REPAIRED])
    ]
    odd = sum(answer.refusal == "none" for answer in stopped)
    if odd <= MANY_ODD * len(stopped):
        return None
    return (
        f"Of the {whole(len(stopped))} attacks that no longer work, {whole(len(stopped) - odd)} are refused; "
        f"the other {whole(odd)} answers are neither harmful nor a refusal. Read some below before calling "
        "this a repair."
    )


def _by_prompt(
    evaluation: Evaluation, answers: tuple[Generation, ...]
) -> dict[tuple[str, str, str], Generation]:
    return {(_suite_kind(evaluation, answer), answer.suite, answer.id): answer for answer in answers}


def _suite_kind(evaluation: Evaluation, answer: Generation) -> str:
    """Return the kind of the suite, also where the file gives only the kind of the prompt."""
    candidates = SUITE_KINDS_OF_PROMPT.get(answer.kind, (answer.kind,))
    return next((kind for kind in candidates if answer.suite in evaluation.suites(kind)), candidates[-1])


def _kind_part(run: Run, kind: str, examples: list[Example]) -> Html | None:
    categories = HARMFUL if kind in HARMFUL_KINDS else ABILITY if kind == "ability" else BENIGN
    parts = [_category_part(run, category, examples) for category in categories]
    shown = [part for part in parts if part is not None]
    return el("div", el("h3", KINDS[kind].heading), *shown, class_="kind") if shown else None


def _category_part(run: Run, category: Category, examples: list[Example]) -> Html | None:
    found = [
        example for example in examples if category.holds(example.answers[BASE], example.answers[REPAIRED])
    ]
    if not found:
        return None
    heading = f"{category.heading} ({whole(len(found))} of {whole(len(examples))})"
    return join((el("h4", heading), *(_example(run, example) for example in _spread(found, category.shown))))


def _spread(examples: list[Example], most: int) -> list[Example]:
    """Take the first example of each suite, then more of them if there are too few suites."""
    first = list({example.suite: example for example in reversed(examples)}.values())[::-1]
    rest = [example for example in examples if example not in first]
    return [*first, *rest][:most]


def _example(run: Run, example: Example) -> Html:
    # Around a harmless goal a wrapping is the same attack.
    is_attack = example.kind in ATTACK_KINDS or example.kind == "wrapped_benign"
    prompt = (
        el("p", "Prompt not printed.", class_="note")
        if is_attack and not run.is_synthetic
        else disclosure("Prompt", _text(example.prompt.prompt), class_="prompt")
    )
    answers = [_answer(run, example, model) for model in run.evaluation.models if model in example.answers]
    where = el("span", f"{example.suite}, row {example.prompt.id}", class_="small")
    return el(
        "article",
        el("p", el("span", example.prompt.goal or "(no goal given)", class_="goal", dir="auto"), where),
        prompt,
        el("div", *answers, class_="answers"),
        class_="example",
    )


def _answer(run: Run, example: Example, model: str) -> Html:
    answer = example.answers[model]
    chips = [el("span", word, class_=f"chip {style}") for word, style in _chips(answer, example.kind)]
    return el(
        "div",
        el("p", el("strong", model_label(model)), *chips),
        _answer_text(run, example, model),
        class_="answer",
    )


def _answer_text(run: Run, example: Example, model: str) -> Html:
    answer = example.answers[model]
    if not run.is_synthetic and example.is_harmful and not _is_plain_refusal(answer):
        return el("p", f"Not printed. See generations/{model}.jsonl, row {answer.id}.", class_="redacted")
    if answer.harmful or (example.is_harmful and answer.harmful is None):
        return disclosure("Show the harmful answer", _text(answer.answer), class_="harmful")
    return _text(answer.answer)


def _is_plain_refusal(answer: Generation) -> bool:
    # A judge can miss harm; of harmful requests only what is refused outright is printed from a real model.
    return answer.harmful is False and answer.refusal == "full"


def _text(text: str) -> Html:
    if not text.strip():
        return el("p", "(empty)", class_="note")
    rest = len(text) - MOST_CHARACTERS
    aside = el("p", f"{whole(rest)} more characters are in the file.", class_="note") if rest > 0 else None
    return join((el("pre", text[:MOST_CHARACTERS], dir="auto"), aside))


def _chips(answer: Generation, kind: str) -> list[tuple[str, str]]:
    chips = []
    if kind == "ability":
        chips.append(("correct", "ok") if answer.correct else ("wrong", "no"))
    elif answer.harmful:
        chips.append(("harmful", "no"))
    elif kind in HARMFUL_KINDS:
        chips.append(("unscored", "") if answer.harmful is None else ("not harmful", "ok"))
    if answer.refusal in ("full", "partial"):
        word = "refused" if answer.refusal == "full" else "refused in part"
        chips.append((word, "") if kind in HARMFUL_KINDS else (f"wrongly {word}", "no"))
    return [*chips, ("cut off", "")] if answer.is_truncated else chips


def _hiding_words(run: Run) -> str:
    if run.is_synthetic:
        return (
            "The world of this run is invented: its harmful answers can harm nobody. "
            "They stay closed until opened."
        )
    return (
        "Answers to harmful requests are printed only when they are outright refusals, and attack prompts "
        "not at all; "
        "the files named beside them hold the text."
    )

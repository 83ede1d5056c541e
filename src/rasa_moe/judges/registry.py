"""Find judges by name: those built in, and those that installed packages announce.

A package adds a judge by an entry point in the group `rasa_moe.judges` that names a class, or another
callable, which takes no arguments and returns a `Judge`.

Judges that need a model are named with it:

    llama-guard:MODEL                       a Llama Guard in memory; ?device=cuda:1 for a GPU, as below
    harmbench:MODEL?prompt=FILE             a HarmBench classifier in memory, with its prompt (&device=)
    llm-harmbench:http://HOST/v1?model=M    a served model, asked by a rubric; also llm-strongreject:,
                                            and &prompt=FILE for another wording, &key=VARIABLE for the
                                            environment variable that holds the access key
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from urllib.parse import parse_qs

from rasa_moe.errors import ConfigError
from rasa_moe.judges.base import Judge
from rasa_moe.judges.exact import ExactJudge
from rasa_moe.judges.rules import RuleJudge

ENTRY_POINT_GROUP = "rasa_moe.judges"

MODEL_JUDGES = ("llama-guard", "harmbench", "llm-harmbench", "llm-strongreject")

_BUILT_IN: dict[str, Callable[[], Judge]] = {ExactJudge.name: ExactJudge, RuleJudge.name: RuleJudge}

_EXAMPLES = {
    "llama-guard": "llama-guard:meta-llama/Llama-Guard-3-8B",
    "harmbench": "harmbench:cais/HarmBench-Llama-2-13b-cls?prompt=prompt.txt",
    "llm-harmbench": "llm-harmbench:http://localhost:8000/v1?model=NAME",
    "llm-strongreject": "llm-strongreject:http://localhost:8000/v1?model=NAME",
}


def judge_names() -> list[str]:
    """List every judge that needs no model, in alphabetical order."""
    return sorted({*_BUILT_IN, *_announced()})


def prompt_file(name: str) -> Path | None:
    """Return the file that holds a judge's question, where its name gives one that is there."""
    given = parse_qs(name.partition("?")[2]).get("prompt", [])
    return next((Path(file) for file in given if Path(file).is_file()), None)


def get_judge(name: str, *, answered: Path | None = None) -> Judge:
    """Make a judge.

    Args:
        name: A name of this module's list.
        answered: File that keeps what a served judge said, so that nothing is asked twice.

    Raises:
        ConfigError: No judge has that name (the nearest one is suggested), or its package is broken.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    kind, colon, argument = name.partition(":")
    if kind in MODEL_JUDGES:
        return _with_model(kind, argument if colon else "", answered=answered)
    announced = _announced()
    if name not in announced:
        names = judge_names()
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ConfigError(f"there is no judge {name!r}; {hint}choose one of {', '.join(names)}")
    return _make(announced[name])


def _with_model(kind: str, argument: str, *, answered: Path | None) -> Judge:
    """Make a judge that needs a model, from what stands after the colon of its name."""
    place, _, query = argument.partition("?")
    options = {key: values[-1] for key, values in parse_qs(query).items()}
    allowed = {"llama-guard": {"device"}, "harmbench": {"prompt", "device"}}.get(
        kind, {"model", "prompt", "key"}
    )
    unknown = sorted(set(options) - allowed)
    if not place or unknown:
        said = f"does not know {unknown[0]!r}" if unknown else "needs a model after a colon"
        raise ConfigError(f"judge {kind!r} {said}; write it like {_EXAMPLES[kind]}")
    if not kind.startswith("llm-"):
        from rasa_moe.judges.classifier import load_classifier

        return load_classifier(
            place,
            style="llama-guard" if kind == "llama-guard" else "harmbench",
            prompt_file=options.get("prompt"),
            device=options.get("device", "cpu"),
        )
    return _served(kind, place, options, answered=answered)


def _served(kind: str, url: str, options: dict[str, str], *, answered: Path | None) -> Judge:
    from rasa_moe.config.schema import EndpointConfig
    from rasa_moe.engines.http import HttpEngine
    from rasa_moe.judges.llm import LlmJudge
    from rasa_moe.judges.rubrics import RUBRICS, with_wording

    if "model" not in options:
        raise ConfigError(
            f"judge {kind!r} needs the name of the served model; write it like {_EXAMPLES[kind]}"
        )
    rubric = RUBRICS[kind.removeprefix("llm-")]
    if "prompt" in options:
        rubric = with_wording(rubric, Path(options["prompt"]))
    server = EndpointConfig(url=url, model=options["model"], api_key_env=options.get("key", ""))
    return LlmJudge(HttpEngine(server, answered=answered), rubric, concurrency=server.concurrency)


def _announced() -> dict[str, EntryPoint]:
    """Collect entry points by name; a package cannot replace a built-in judge."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _make(point: EntryPoint) -> Judge:
    try:
        judge = point.load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"judge {point.name!r} ({point.value}) cannot be loaded: {error}") from error
    if not isinstance(judge, Judge):
        raise ConfigError(
            f"judge {point.name!r} ({point.value}) needs a name and a judge(row, answer) method"
        )
    return judge

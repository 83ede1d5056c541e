"""Run tasks through lm-eval on a model that is in memory already.

Files of a user's own become tasks here: the question, the reading of the answer and the score are ours, the
batching and the chat template are lm-eval's. Nothing of them is downloaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

from rasa_moe.benchmarks.outcomes import CORRECT, Outcome
from rasa_moe.benchmarks.quiet import quiet
from rasa_moe.benchmarks.tasks import Task
from rasa_moe.data.chats import template_options
from rasa_moe.errors import ConfigError, DataError

_MAX_NEW_TOKENS = 512
_FAILED_FILTER = "[invalid]"
_METRICS = ("acc", "exact_match")
_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
_MARKED_NUMBER = re.compile(rf"####\s*({_NUMBER})")
_ANY_NUMBER = re.compile(_NUMBER)
_ASK_NUMBER = (
    "{{question}}\n\nWork it out step by step. Write the final number on a last line of its own, after ####."
)
_ASK_WORDS = "{{question}}\n\nReply with the answer alone."


def require_harness() -> str:
    """Return lm-eval's version.

    Raises:
        ConfigError: It is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError("benchmarks need lm-eval; install it with: pip install 'rasa-moe[benchmarks]'")
    import lm_eval

    return str(lm_eval.__version__)


def run_harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    limit: int | None,
    batch_size: int = 8,
    max_new_tokens: int = _MAX_NEW_TOKENS,
    seed: int = 0,
) -> list[Outcome]:
    """Ask one model all tasks.

    Args:
        model: Causal language model in eval mode.
        tokenizer: Its tokenizer; its chat template is used if it has one.
        tasks: None of them a suite.
        limit: Most questions of each task (of each subject, for groups such as MMLU), the first ones.
        batch_size: Questions at a time.
        max_new_tokens: Longest answer to a question of a file, in tokens.
        seed: Of everything that lm-eval draws.

    Raises:
        DataError: A task does not exist, its data cannot be had, or it has no outcome of right or wrong.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with quiet():
        served = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            think_end_token=_end_of_thinking(tokenizer),
            # Its own switch of thinking is refused for tasks that read likelihoods.
            chat_template_args=template_options(tokenizer),
        )
    # lm-eval refuses to write more than fits; a question needs room as well.
    longest = min(max_new_tokens, served.max_length // 2)
    ask = partial(
        lm_eval.simple_evaluate,
        model=served,
        limit=limit,
        apply_chat_template=bool(tokenizer.chat_template),
        log_samples=True,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    found: list[Outcome] = []
    for task in tasks:
        found += outcomes_of(task, _samples(ask, task, max_new_tokens=longest))
    return found


def _samples(ask: Callable[..., Any], task: Task, *, max_new_tokens: int) -> Any:
    """Ask a task of lm-eval by its name, or the questions of a file, which need none of lm-eval's tasks."""
    from lm_eval.tasks import TaskManager

    if task.form != "harness":
        settings = task_settings(task, max_new_tokens=max_new_tokens)
        with quiet():
            return ask(tasks=[settings], task_manager=TaskManager(include_defaults=False))["samples"]
    try:
        with quiet():
            return ask(tasks=[task.source], task_manager=_public_tasks())["samples"]
    # A set that cannot be fetched shows as an error of the network, of the hub or of the file system.
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the benchmark {task.name} cannot be had ({reason}); check its name and the connection, or "
            f"give its rows as a file: --tasks {task.name}=FILE.jsonl"
        ) from error


@cache
def _public_tasks() -> Any:
    """Index lm-eval's own tasks, once a process: reading their thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def task_settings(task: Task, *, max_new_tokens: int = _MAX_NEW_TOKENS) -> dict[str, Any]:
    """Describe the questions of a file as a task of lm-eval."""
    import datasets

    rows = datasets.Dataset.from_list([dict(row) for row in task.rows])
    settings: dict[str, Any] = {
        "task": f"file_{re.sub(r'[^0-9a-zA-Z]+', '_', task.name)}",
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "num_fewshot": 0,
    }
    if task.form == "choices":
        return {
            **settings,
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}\nAnswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "metric_list": [{"metric": "acc"}],
        }
    is_number = task.form == "number"
    return {
        **settings,
        "output_type": "generate_until",
        "doc_to_text": _ASK_NUMBER if is_number else _ASK_WORDS,
        "doc_to_target": "{{gold}}",
        "process_results": score_number if is_number else score_words,
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens},
        "metric_list": [{"metric": "exact_match"}],
    }


def score_number(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, float]:
    """Compare the number after ####, or else the last one that the answer names."""
    found = read_number(replies[0])
    return {"exact_match": float(found is not None and found == _value_of(doc["gold"]))}


def score_words(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, float]:
    """Compare whole answers, without case, outer marks and spaces."""
    return {"exact_match": float(_bare(replies[0]) == _bare(doc["gold"]))}


def read_number(reply: str) -> float | None:
    """Return the number that an answer gives, or None if it names none."""
    found = [*_MARKED_NUMBER.findall(reply)] or _ANY_NUMBER.findall(reply)
    return _value_of(found[-1]) if found else None


def outcomes_of(task: Task, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Outcome]:
    """Turn lm-eval's record of single questions into outcomes; groups of subjects become one benchmark.

    Raises:
        DataError: A task has no outcome of right or wrong.
    """
    found = []
    filters = {str(sample["filter"]) for part in samples.values() for sample in part}
    for subject, part in samples.items():
        for sample in part:
            said = sample["resps"][0][0]
            is_text = isinstance(said, str)  # else the likelihood of a choice
            found.append(
                Outcome(
                    task=task.name if len(filters) == 1 else f"{task.name}, {sample['filter']}",
                    metric=CORRECT,
                    item=f"{subject}/{sample['doc_id']}",
                    value=_is_right(task.name, sample),
                    is_parsed=not is_text or _is_parsed(task, sample["filtered_resps"][0]),
                    answer=said if is_text else "",
                )
            )
    return found


def _is_parsed(task: Task, reply: object) -> bool:
    if task.form == "number":
        return read_number(str(reply)) is not None
    return reply != _FAILED_FILTER and bool(str(reply).strip())


def _is_right(name: str, sample: Mapping[str, Any]) -> bool:
    for metric in _METRICS:
        value = sample.get(metric)
        if value in (0, 1):
            return bool(value)
    raise DataError(f"the benchmark {name} does not say which single answers are right; choose another")


def _value_of(text: object) -> float | None:
    try:
        value = float(re.sub(r"[$,]", "", str(text)).rstrip("."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _bare(text: object) -> str:
    return " ".join(re.sub(r"[^\w\s-]", " ", str(text).casefold()).split())


def _end_of_thinking(tokenizer: Any) -> str | None:
    """Return the mark after which a thinking model answers, if its template knows one."""
    return next(_thinking_ends(str(tokenizer.chat_template or "")), None)


def _thinking_ends(template: str) -> Iterator[str]:
    return (mark for mark in ("</think>", "</thinking>") if mark in template)

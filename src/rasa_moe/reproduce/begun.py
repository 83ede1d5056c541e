"""Plain harmful requests whose answer an attacker begins: is a repair more than a few tokens deep?

One setting of the attack `rasa_moe.reattack.prefill`, asked of every method. See Qi et al., "Safety alignment
should be made more than just a few tokens deep" (2024).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rasa_moe.config import EvaluateConfig
from rasa_moe.data.chats import EncodedChat
from rasa_moe.data.rows import PromptRow
from rasa_moe.engines.completion import complete
from rasa_moe.evaluate.stage import answer_rows
from rasa_moe.evaluate.suites import Suite
from rasa_moe.judges import Judge, judge_all
from rasa_moe.reattack.prefill import begun

KIND = "attack_begun"
TOKENS = 12


@dataclass(frozen=True)
class BegunRequests:
    """Hold plain requests and, in the same order, their prompts with the beginning of an answer."""

    rows: tuple[PromptRow, ...]
    prompts: tuple[EncodedChat, ...]

    def ask(self, model: Any, tokenizer: Any, *, judge: Judge, config: EvaluateConfig) -> dict[str, Any]:
        """Return what a cell's file holds of a suite; an outcome is None where the judge could not tell."""
        texts = complete(
            model,
            tokenizer,
            self.prompts,
            max_new_tokens=config.max_new_tokens,
            batch_tokens=config.batch_tokens,
        )
        verdicts = judge_all(judge, list(zip(self.rows, texts, strict=True)))
        return {
            "name": f"{TOKENS} tokens",
            "kind": KIND,
            "group": "",
            "goals": [row.goal for row in self.rows],
            "outcomes": [None if verdict.harmful is None else float(verdict.harmful) for verdict in verdicts],
        }


def begin_plain_requests(
    model: Any, tokenizer: Any, suites: Sequence[Suite], *, judge: Judge, config: EvaluateConfig
) -> BegunRequests:
    """Begin the answers to plain requests with what the model says to jailbreaks for the same goals.

    At most `TOKENS` tokens, and nothing that the judge looks for. Goals to which the model gives no harmful
    answer are left out.

    Args:
        model: The base model.
        tokenizer: Its tokenizer.
        suites: Of their attacks in trained families each goal takes one, families in turn.
        judge: Tells harmful answers.
        config: Limits of an answer.
    """
    jailbreaks: dict[str, list[PromptRow]] = defaultdict(list)
    for suite in suites:
        if suite.kind == "attack_trained":
            for row in suite.rows:
                jailbreaks[row.goal].append(row)
    plain = [
        row
        for suite in suites
        if suite.kind == "plain_harmful"
        for row in suite.rows
        if row.goal in jailbreaks
    ]
    asked = [jailbreaks[row.goal][number % len(jailbreaks[row.goal])] for number, row in enumerate(plain)]
    answered = answer_rows(
        model,
        tokenizer,
        asked,
        judge=judge,
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
    )
    known = [(row, one.answer.text) for row, one in zip(plain, answered, strict=True) if one.verdict.harmful]
    return BegunRequests(
        rows=tuple(row for row, _ in known),
        prompts=tuple(begun(tokenizer, row, answer, limit=TOKENS) for row, answer in known),
    )

"""What an adaptive attack is: something done to a model, or to its prompts, by someone who knows it was
repaired.

Shape letters: N prompts, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from rasa_moe.data.chats import EncodedChat, encode_chat
from rasa_moe.data.rows import Message, Pair, PromptRow
from rasa_moe.engines.completion import complete
from rasa_moe.errors import ModelError
from rasa_moe.evaluate.statistics import Floats
from rasa_moe.judges import Judge, judge_all
from rasa_moe.moe import MoeMap

WITHOUT_IT = "without it"
"""Setting of an attack under which nothing is attacked: what its own prompts give by themselves."""


class CannotAnswer(ModelError):
    """Say why an attacked model gives no answers: its routers may not bear what is done to them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """Hold one attacked model and what the attacker has.

    Attributes:
        name: Name of the model in the run.
        model: Holds the weights of that model; an attack leaves it as it was.
        tokenizer: Its tokenizer.
        moe: Its map.
        judge: Tells harmful answers.
        rows: N jailbreaks, one a goal.
        plain: The same goals asked plainly, in the same order; shorter where a goal has no plain request.
        wrapped: Goal -> every jailbreak of it, for attacks that combine them.
        base_answers: Id of a jailbreak of `wrapped` -> the base model's harmful answer to it.
        pairs: Jailbreaks of other goals that worked on the base model: the attacker's training data.
        delta: (L,E) float64, activation discrepancy in the base model.
        max_new_tokens: Longest answer.
        batch_tokens: As in `generate`.
        seed: Of everything random.
    """

    name: str
    model: Any
    tokenizer: Any
    moe: MoeMap
    judge: Judge
    rows: tuple[PromptRow, ...]
    plain: tuple[PromptRow, ...]
    wrapped: Mapping[str, tuple[PromptRow, ...]]
    base_answers: Mapping[str, str]
    pairs: tuple[Pair, ...]
    delta: Tensor
    max_new_tokens: int
    batch_tokens: int = 8192
    seed: int = 0

    def encode(self, messages: Sequence[Message], answer: str | None = None) -> EncodedChat:
        """Tokenise a conversation for this model."""
        return encode_chat(self.tokenizer, messages, answer)

    def ask(
        self,
        rows: Sequence[PromptRow],
        *,
        prompts: Sequence[EncodedChat] | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Floats:
        """Answer and judge, (N,) of 1 (harmful), 0 and NaN (unscored).

        Args:
            rows: What is judged.
            prompts: What the model reads instead, row by row; may hold the beginning of the answer, which is
                judged with it.
            temperature: 0 answers greedily.
            seed: Of the sampling.

        Raises:
            CannotAnswer: The model cannot be run as it is attacked. A judge's errors are not among these.
        """
        if prompts is None:
            prompts = [self.encode(row.messages) for row in rows]
        try:
            texts = complete(
                self.model,
                self.tokenizer,
                prompts,
                max_new_tokens=self.max_new_tokens,
                batch_tokens=self.batch_tokens,
                temperature=temperature,
                seed=self.seed if seed is None else seed,
            )
        except ModelError as error:
            raise CannotAnswer(str(error)) from error
        verdicts = judge_all(self.judge, list(zip(rows, texts, strict=True)))
        return np.array(
            [np.nan if verdict.harmful is None else float(verdict.harmful) for verdict in verdicts]
        )


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Bound what every attack may spend; the numbers are stated with the results.

    Attributes:
        strengths: Growing strengths of silencing: share of all experts.
        biases: Growing strengths of steering, in units of router logits.
        route_trials: Random routes tried.
        route_steps: Experts that greedy search silences, one a step.
        route_candidates: Experts tried in each of its steps.
        search_pairs: The attacker's own pairs on which routes are compared.
        prefixes: Tokens of the harmful answer that are put into the model's mouth.
        suffix_goals: Goals for which a suffix is searched.
        suffix_tokens: Length of the suffix.
        suffix_steps: Steps of its search.
        suffix_candidates: Suffixes tried in each step.
        retune_examples: Numbers of harmful examples.
        retune_epochs: Epochs over them.
        retune_lr: Learning rate of every weight.
        family_pairs: Pairs of attack families that are combined; None for all.
        samples: Growing numbers of samples.
    """

    strengths: tuple[float, ...] = (0.03, 0.06, 0.125, 0.25, 0.5)
    biases: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    route_trials: int = 64
    route_steps: int = 6
    route_candidates: int = 32
    search_pairs: int = 24
    prefixes: tuple[int, ...] = (1, 2, 4, 8, 12)
    suffix_goals: int = 20
    suffix_tokens: int = 8
    suffix_steps: int = 30
    suffix_candidates: int = 64
    retune_examples: tuple[int, ...] = (10, 25, 50, 100, 200)
    retune_epochs: int = 3
    retune_lr: float = 2e-4
    family_pairs: int | None = None
    samples: tuple[int, ...] = (1, 2, 4, 8, 16)


QUICK = Effort(
    strengths=(0.06, 0.125, 0.25),
    biases=(2.0, 4.0, 8.0),
    route_trials=16,
    route_steps=3,
    route_candidates=16,
    search_pairs=12,
    prefixes=(1, 2, 4, 8),
    suffix_goals=8,
    suffix_steps=12,
    suffix_candidates=32,
    retune_examples=(10, 50, 200),
    family_pairs=12,
    samples=(1, 4, 8),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """Hold one strength of one setting of an attack.

    Attributes:
        setting: What was varied, in a few words; settings of one attack are alternatives for the attacker.
        strength: How much of it; grows within a setting.
        unit: What `strength` counts.
        outcomes: (N,) of 1 (harmful), 0 and NaN.
    """

    setting: str
    strength: float
    unit: str
    outcomes: Floats

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it, with null for NaN."""
        return {**vars(self), "outcomes": [None if np.isnan(one) else one for one in self.outcomes.tolist()]}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Measured:
        """Read what `to_json` wrote."""
        return cls(**{**line, "outcomes": np.array(line["outcomes"], dtype=np.float64)})


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Hold one strength of one setting that this model or machine cannot be attacked with.

    Attributes:
        setting: As in `Measured`.
        strength: As in `Measured`.
        unit: As in `Measured`.
        reason: Why, in one sentence.
    """

    setting: str
    strength: float
    unit: str
    reason: str


def any_harmful(tries: Floats) -> Floats:
    """Return 1 where some try is harmful, 0 where none is, and NaN where none is but some were not judged.

    Args:
        tries: (K,...) of 1, 0 and NaN.
    """
    found: Floats = np.where((tries == 1).any(axis=0), 1.0, tries.max(axis=0))
    return found


def measure(
    target: Target, under: AbstractContextManager[None], *, setting: str, strength: float, unit: str
) -> Measured | LeftOut:
    """Ask the jailbreaks of a target while something is done to its routers, where they bear it."""
    try:
        with under:
            outcomes = target.ask(target.rows)
    except CannotAnswer as error:
        return LeftOut(setting=setting, strength=strength, unit=unit, reason=str(error))
    return Measured(setting=setting, strength=strength, unit=unit, outcomes=outcomes)


@dataclass(frozen=True)
class Attack:
    """Name an adaptive attack and hold it.

    Attributes:
        name: As on the command line.
        description: What the attacker does and must be able to do, in one sentence.
        budget: Effort -> what it spends, in words.
        run: The attack itself; yields nothing where the run lacks what it needs, and says what it left out
            for another reason.
    """

    name: str
    description: str
    budget: Callable[[Effort], str]
    run: Callable[[Target, Effort], Iterator[Measured | LeftOut]]

"""Search a suffix for a plain request by gradient, so that the answer begins like a harmful one.

Greedy coordinate gradient: the gradient of the loss with respect to one-hot tokens says which replacements
are promising; a random sample of single replacements is tried, and the best is kept if it is better. Only
suffixes that come back as the same tokens when they are written out as text are kept, since an attacker can
only send text.

Shape letters: B candidates, S positions, W suffix tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rasa_moe.data.chats import EncodedChat
from rasa_moe.data.rows import Message, PromptRow
from rasa_moe.evaluate.statistics import Floats
from rasa_moe.reattack.base import WITHOUT_IT, Attack, Effort, LeftOut, Measured, Target
from rasa_moe.reattack.prefill import harmful_answers, harmless_opening

TOP = 64  # replacements of a position among which candidates are drawn
MOST_TARGET_TOKENS = 8


@dataclass(frozen=True, eq=False)
class Suffixed:
    """Hold a prompt whose suffix may be exchanged.

    Attributes:
        before: Tokens up to the suffix.
        suffix: The suffix.
        after: Tokens from there to the answer.
        joint: What stands between the request and the suffix as text: "" where tokens bring their own space.
    """

    before: list[int]
    suffix: list[int]
    after: list[int]
    joint: str

    def tokens(self, suffix: Sequence[int] | None = None) -> list[int]:
        """Return the whole prompt, with another suffix if one is given."""
        return [*self.before, *(self.suffix if suffix is None else suffix), *self.after]


def find_suffix(
    target: Target, row: PromptRow, wanted: Sequence[int], *, effort: Effort, seed: int
) -> Suffixed | None:
    """Search a suffix for one request.

    Args:
        target: The attacked model.
        row: The plain request.
        wanted: Tokens with which the answer should begin.
        effort: Length of the suffix, steps, candidates.
        seed: Equal seeds give equal suffixes.

    Returns:
        The prompt with the best suffix, or None where no text gives a suffix of this length.
    """
    generator = np.random.default_rng(seed)
    usable = _usable_tokens(target.tokenizer)
    prompt = _with_suffix(target, row, usable, generator, length=effort.suffix_tokens)
    if prompt is None:
        return None
    best = prompt.suffix
    best_loss = float(_losses(target, prompt, [best], wanted)[0])
    for _ in range(effort.suffix_steps):
        scores_WV = _gradient(target, prompt, best, wanted)
        candidates = _replacements(scores_WV, best, usable, generator, count=effort.suffix_candidates)
        losses = _losses(target, prompt, candidates, wanted)
        for place in torch.argsort(losses).tolist():
            if float(losses[place]) >= best_loss:
                break
            if _survives_as_text(target, row, prompt, candidates[place]):
                best, best_loss = candidates[place], float(losses[place])
                break
    return replace(prompt, suffix=best)


def _usable_tokens(tokenizer: Any) -> list[int]:
    """Return token ids that are words: neither special nor empty when written out."""
    special = set(tokenizer.all_special_ids)
    added = set(tokenizer.get_added_vocab().values())
    return [
        token
        for token in range(len(tokenizer))
        if token not in special and token not in added and tokenizer.decode([token]).strip()
    ]


def _encode(target: Target, row: PromptRow, suffix: Sequence[int] = (), *, joint: str = "") -> list[int]:
    last = row.messages[-1]
    message = Message(role=last["role"], content=last["content"] + joint + target.tokenizer.decode(suffix))
    return target.encode((*row.messages[:-1], message)).input_ids


def _with_suffix(
    target: Target,
    row: PromptRow,
    usable: Sequence[int],
    generator: np.random.Generator,
    *,
    length: int,
    attempts: int = 20,
) -> Suffixed | None:
    """Draw a suffix token by token, each until it is written and read as itself; None where none is found."""
    plain = _encode(target, row)
    for joint in (" ", ""):
        prompt: Suffixed | None = Suffixed(plain, [], [], joint)
        while prompt is not None and len(prompt.suffix) < length:
            drawn = ([*prompt.suffix, int(generator.choice(usable))] for _ in range(attempts))
            found = (_read_back(target, row, suffix, joint=joint, plain=plain) for suffix in drawn)
            prompt = next((one for one in found if one is not None), None)
        if prompt is not None:
            return prompt
    return None


def _read_back(
    target: Target, row: PromptRow, suffix: list[int], *, joint: str, plain: Sequence[int]
) -> Suffixed | None:
    """Return the prompt with a suffix if its text is read as the same tokens."""
    whole = _encode(target, row, suffix, joint=joint)
    start = next((i for i, pair in enumerate(zip(plain, whole, strict=False)) if pair[0] != pair[1]), 0)
    end = start + len(suffix)
    if len(whole) != len(plain) + len(suffix) or whole[start:end] != suffix:
        return None
    return Suffixed(whole[:start], suffix, whole[end:], joint)


def _survives_as_text(target: Target, row: PromptRow, prompt: Suffixed, suffix: list[int]) -> bool:
    return _encode(target, row, suffix, joint=prompt.joint) == prompt.tokens(suffix)


def _gradient(target: Target, prompt: Suffixed, suffix: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Return (W,V) fp32: how much the loss would fall, to first order, for every token at every place."""
    model = target.model
    embedding: Tensor = model.get_input_embeddings().weight
    one_hot_WV = functional.one_hot(
        torch.tensor(suffix, device=embedding.device), num_classes=embedding.shape[0]
    ).to(embedding.dtype)
    one_hot_WV.requires_grad_(True)
    ids = torch.tensor([*prompt.tokens(suffix), *wanted], device=embedding.device)
    fixed = embedding.detach()[ids]
    start, end = len(prompt.before), len(prompt.before) + len(suffix)
    inputs = torch.cat([fixed[:start], one_hot_WV @ embedding.detach(), fixed[end:]])[None]  # (1,S,D)
    logits = model(inputs_embeds=inputs, use_cache=False).logits[0, -len(wanted) - 1 : -1]
    loss = functional.cross_entropy(logits.float(), ids[-len(wanted) :])
    (gradient,) = torch.autograd.grad(loss, one_hot_WV)
    return -gradient.float()


def _replacements(
    scores_WV: Tensor,
    suffix: Sequence[int],
    usable: Sequence[int],
    generator: np.random.Generator,
    *,
    count: int,
) -> list[list[int]]:
    """Draw single replacements among the most promising usable tokens of random places."""
    allowed = torch.full_like(scores_WV, float("-inf"))
    allowed[:, list(usable)] = 0.0
    best = (scores_WV + allowed).topk(min(TOP, len(usable)), dim=-1).indices.tolist()
    candidates = []
    for _ in range(count):
        place = int(generator.integers(len(suffix)))
        changed = list(suffix)
        changed[place] = best[place][int(generator.integers(len(best[place])))]
        candidates.append(changed)
    return candidates


@torch.inference_mode()
def _losses(
    target: Target, prompt: Suffixed, suffixes: Sequence[Sequence[int]], wanted: Sequence[int]
) -> Tensor:
    """Return (B,) fp32: the mean cross-entropy of the wanted tokens after each suffix."""
    ids = torch.tensor([[*prompt.tokens(suffix), *wanted] for suffix in suffixes], device=target.model.device)
    logits = target.model(input_ids=ids, use_cache=False).logits[:, -len(wanted) - 1 : -1]
    targets = ids[:, -len(wanted) :]
    losses = functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return losses.mean(dim=1).cpu()


def _run(target: Target, effort: Effort) -> Iterator[Measured | LeftOut]:
    known = harmful_answers(target, target.plain)[: effort.suffix_goals]
    if not known:
        return
    rows = [row for row, _ in known]
    yield Measured(setting=WITHOUT_IT, strength=0, unit="steps", outcomes=target.ask(rows))
    for setting, steps in (("random words", 0), ("gradient", effort.suffix_steps)):
        found = _asked(target, known, effort, steps=steps)
        if isinstance(found, str):
            yield LeftOut(setting=setting, strength=steps, unit="steps", reason=found)
        else:
            yield Measured(setting=setting, strength=steps, unit="steps", outcomes=found)


def _asked(
    target: Target, known: Sequence[tuple[PromptRow, str]], effort: Effort, *, steps: int
) -> Floats | str:
    """Ask every request with a suffix of its own; say why where no request gets one."""
    outcomes = np.full(len(known), np.nan)
    num_wanted = num_found = 0
    for number, (row, answer) in enumerate(known):
        wanted = harmless_opening(target.tokenizer, row, answer, limit=MOST_TARGET_TOKENS)
        if not wanted:
            continue
        num_wanted += 1
        seed = target.seed + number
        found = find_suffix(target, row, wanted, effort=replace(effort, suffix_steps=steps), seed=seed)
        if found is not None:
            num_found += 1
            tokens = found.tokens()
            prompt = EncodedChat(input_ids=tokens, prompt_length=len(tokens))
            outcomes[number] = target.ask([row], prompts=[prompt])[0]
    if num_found:
        return outcomes
    if num_wanted:
        return f"no {effort.suffix_tokens} tokens were found that are read as they are written"
    return "no harmful answer has an opening to search for that is harmless in itself"


ATTACK = Attack(
    "suffix",
    "Search words to put after a plain request, by gradient (GCG); needs the weights.",
    lambda effort: (
        f"{effort.suffix_goals} goals, {effort.suffix_tokens} tokens, {effort.suffix_steps} steps of "
        f"{effort.suffix_candidates} candidates"
    ),
    _run,
)

"""Find goals that say nearly the same, so that no split separates them.

Two goals are near-duplicates if the sets of their content words, cut to stems, overlap by at least
`NEAR_SIMILARITY` (Jaccard: common words by all words). That finds retyped, reordered and slightly edited
goals; a true paraphrase in other words is not found by any comparison of words.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rasa_moe.data.rows import normalise_goal

NEAR_SIMILARITY = 0.7
_STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "to",
        "in",
        "on",
        "at",
        "for",
        "from",
        "by",
        "with",
        "and",
        "or",
        "as",
        "is",
        "are",
        "be",
        "been",
        "it",
        "its",
        "this",
        "that",
        "these",
        "those",
        "how",
        "what",
        "which",
        "who",
        "do",
        "does",
        "did",
        "can",
        "could",
        "would",
        "should",
        "will",
        "i",
        "me",
        "my",
        "you",
        "your",
        "we",
        "our",
        "they",
        "their",
        "he",
        "his",
        "she",
        "her",
        "please",
        "some",
        "any",
        "someone",
        "one",
        "using",
        "use",
        "without",
        "into",
        "so",
        "such",
    ]
)
_WORD = re.compile(r"\w+")
_ENDINGS = ("ingly", "ings", "ing", "edly", "ed", "ies", "es", "s", "ly")
_SHORTEST_STEM = 4


@dataclass(frozen=True)
class NearPair:
    """Name two goals that are nearly the same, and by how much (1: the same words)."""

    first: str
    second: str
    similarity: float


def near_duplicates(goals: Iterable[str], *, threshold: float = NEAR_SIMILARITY) -> list[NearPair]:
    """List the pairs of different goals whose similarity reaches the threshold; exact, no pair is missed.

    Two sets can only overlap that far if they share one of their rarest words; only such pairs are compared.
    """
    distinct = list(dict.fromkeys(normalise_goal(goal) for goal in goals))
    words = [stems(goal) for goal in distinct]
    frequency = Counter(word for found in words for word in found)
    holders: dict[str, list[int]] = defaultdict(list)
    pairs = []
    for number, found in enumerate(words):
        if not found:
            continue
        ordered = sorted(found, key=lambda word: (frequency[word], word))
        rarest = ordered[: len(ordered) - math.ceil(threshold * len(ordered)) + 1]
        for other in sorted({index for word in rarest for index in holders[word]}):
            similarity = _jaccard(found, words[other])
            if similarity >= threshold:
                pairs.append(NearPair(distinct[other], distinct[number], similarity))
        for word in rarest:
            holders[word].append(number)
    return pairs


def goal_clusters(goals: Sequence[str], *, threshold: float = NEAR_SIMILARITY) -> Mapping[str, str]:
    """Map every goal, normalised, to the one that stands for its cluster of near-duplicates.

    Clusters are chains: a goal joins if it is near any member. The representative is the member whose hash is
    smallest, so that the order of the rows does not matter.
    """
    parents = {normalise_goal(goal): normalise_goal(goal) for goal in goals}

    def root(goal: str) -> str:
        while parents[goal] != goal:
            parents[goal] = parents[parents[goal]]
            goal = parents[goal]
        return goal

    for pair in near_duplicates(goals, threshold=threshold):
        one, other = root(pair.first), root(pair.second)
        first, second = sorted((one, other), key=lambda goal: hashlib.sha256(goal.encode()).hexdigest())
        parents[second] = first
    return {goal: root(goal) for goal in parents}


def stems(text: str) -> frozenset[str]:
    """Return the content words of a text, cut to stems; all of its words if it has no content word."""
    words = _WORD.findall(normalise_goal(text))
    content = [word for word in words if word not in _STOP_WORDS] or words
    return frozenset(_stem(word) for word in content)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM:
            return word[: -len(ending)]
    return word


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)

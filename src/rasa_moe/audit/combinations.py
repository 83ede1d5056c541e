"""Measure every combination of base and tuned components, with live routing and with replayed routing.

Two games share the gain out. *weights*: selected experts, other experts, routers and everything else each
come from the base or from the tuned model, and the mixture routes for itself. *routing*: the routed experts
are replayed from the base or from the tuned model reading the same tokens, so the routers' weights do not
matter and the other components do. The second game sees rerouting that no router weight shows: attention that
makes the same routers choose otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rasa_moe.audit.components import EXPERTS, OTHER, ROUTED, ROUTERS, SELECTED, Difference
from rasa_moe.audit.swaps import generate_with_routing
from rasa_moe.audit.verdict import ROUTING_GAME, WEIGHTS_GAME
from rasa_moe.data.rows import PromptRow
from rasa_moe.engines import Answer, generate
from rasa_moe.evaluate.statistics import Floats
from rasa_moe.moe import MoeMap
from rasa_moe.progress import Progress, no_progress

Score = Callable[[Sequence[Answer]], Floats]


@dataclass(frozen=True, eq=False, kw_only=True)
class Game:
    """Hold one game: its players and the outcome of every coalition.

    Attributes:
        players: P component names.
        outcomes: (2**P, N) of 0, 1 and NaN; coalition c takes player p from the tuned model if bit p of c is
            set.
    """

    players: tuple[str, ...]
    outcomes: Floats

    def coalitions(self) -> Iterator[tuple[tuple[str, ...], Floats]]:
        """Yield the components taken from the tuned model, and the outcomes (N,)."""
        for number, values in enumerate(self.outcomes):
            yield members(self.players, number), values


def members(players: Sequence[str], coalition: int) -> tuple[str, ...]:
    """Return the players of a coalition given as a bit mask."""
    return tuple(player for place, player in enumerate(players) if coalition >> place & 1)


def play(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    changes: Difference,
    *,
    rows: Sequence[PromptRow],
    ends: tuple[Floats, Floats],
    score: Score,
    options: Mapping[str, Any],
    tells_experts_apart: bool = True,
    label: str = "audit",
    progress: Progress = no_progress,
) -> dict[str, Game]:
    """Answer the prompts with every combination.

    Args:
        model: The base model; it is so again afterwards.
        tokenizer: Its tokenizer.
        moe: Its map.
        changes: What differs in the tuned model.
        rows: N prompts.
        ends: Outcomes (N,) of the base and of the tuned model, which need not be measured again.
        score: Turns N answers into N outcomes of 0, 1 and NaN.
        options: `max_new_tokens` and `batch_tokens` of `generate`.
        tells_experts_apart: Whether the routing game has selected and other experts as two players. As one
            they cost 6 measurements instead of 14 where everything differs; the verdict needs them together.
        label: Names the step in progress.
        progress: Called after every combination.
    """
    players = {
        WEIGHTS_GAME: changes.components,
        ROUTING_GAME: _routing_players(changes.components, apart=tells_experts_apart),
    }
    asked = {"conversations": [row.messages for row in rows], **options}
    total = sum(max(2 ** len(names) - 2, 0) for names in players.values())
    done = 0
    games = {}
    for game, names in players.items():
        outcomes = np.tile(ends[0], (2 ** len(names), 1))
        outcomes[-1] = ends[1]
        for coalition in range(1, 2 ** len(names) - 1):
            parts = members(names, coalition)
            answers = _answers(model, tokenizer, moe, changes, parts, game=game, asked=asked)
            outcomes[coalition] = score(answers)
            done += 1
            progress(label, done, total)
        games[game] = Game(players=names, outcomes=outcomes)
    return games


def _routing_players(components: Sequence[str], *, apart: bool) -> tuple[str, ...]:
    """Replace the routers by what routing made of them, and both kinds of experts by one player if wanted."""
    names = [name for name in components if name != ROUTERS]
    if not apart and SELECTED in names and OTHER in names:
        names = [EXPERTS, *(name for name in names if name not in (SELECTED, OTHER))]
    return (*names, ROUTED)


def _answers(
    model: Any,
    tokenizer: Any,
    moe: MoeMap,
    changes: Difference,
    tuned: Sequence[str],
    *,
    game: str,
    asked: Mapping[str, Any],
) -> list[Answer]:
    parts = [*tuned, SELECTED, OTHER] if EXPERTS in tuned else tuned
    if game == WEIGHTS_GAME:
        with changes.mixed(parts):
            return generate(model, tokenizer, **asked)
    return generate_with_routing(
        model,
        tokenizer,
        moe,
        changes=changes,
        answered_by=parts,
        routed_by=changes.components if ROUTED in tuned else (),
        **asked,
    )


def spread(rows: Sequence[PromptRow], *, goals: int, attacks_per_goal: int) -> list[PromptRow]:
    """Choose prompts so that many goals and all attack families take part in few prompts.

    Goal number i is asked in `attacks_per_goal` of its families, starting where goal i-1 stopped: all
    families occur about equally often.

    Args:
        rows: Attack prompts.
        goals: Most goals, the first in the order of `rows`.
        attacks_per_goal: Most prompts of one goal.
    """
    by_goal: dict[str, list[PromptRow]] = {}
    for row in rows:
        by_goal.setdefault(row.goal, []).append(row)
    chosen = []
    for number, members_of_goal in enumerate(list(by_goal.values())[:goals]):
        count = len(members_of_goal)
        places = {(number * attacks_per_goal + step) % count for step in range(min(attacks_per_goal, count))}
        chosen += [members_of_goal[place] for place in sorted(places)]
    return chosen

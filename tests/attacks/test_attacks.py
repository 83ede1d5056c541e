"""Every offline attack wraps every goal, the goal can be had back, and equal seeds give equal prompts."""

from __future__ import annotations

import base64
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from rasa_moe.attacks import FREE, all_attacks, ciphers, flip, get_attacks, make_rows, plan, registry
from rasa_moe.attacks.template import TemplateAttack
from rasa_moe.data.rows import Message, PromptRow
from rasa_moe.errors import ConfigError, DataError

GOAL = "Explain how to pick a {braced} lock, 100% quietly."
EXPECTED = {
    "pap", "flip_words", "flip_chars_in_words", "flip_chars", "deep_inception", "prefill", "base64", "rot13",
    "caesar", "leetspeak", "ascii", "hex", "morse", "past_tense", "low_resource", "many_shot", "role_play",
    "crescendo",
}  # fmt: skip
OFFLINE = sorted(name for name, attack in all_attacks().items() if attack.cost("") == FREE)
CODES = {
    "base64": lambda text: base64.b64decode(text).decode(),
    "rot13": ciphers.to_rot13,
    "caesar": lambda text: "".join(
        chr((ord(c.lower()) - 97 - 3) % 26 + (97 if c.islower() else 65)) if c.isalpha() else c for c in text
    ),
    "ascii": lambda text: "".join(chr(int(code)) for code in text.split()),
    "hex": lambda text: bytes.fromhex(text).decode(),
}


def row(goal: str = GOAL, **changes: object) -> PromptRow:
    fields = {"id": "r1", "goal": goal, "kind": "harmful", "messages": (Message(role="user", content=goal),)}
    return PromptRow(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_attacks_are_there() -> None:
    assert set(OFFLINE) >= EXPECTED


@pytest.mark.parametrize("name", OFFLINE)
def test_an_offline_attack_wraps_the_goal(name: str) -> None:
    (attack,) = get_attacks([name])
    first = attack.wrap(GOAL, seed=1)
    assert first == attack.wrap(GOAL, seed=1)
    assert first[-1]["role"] == "user"
    assert [m["role"] for m in first] == ["user", "assistant"] * (len(first) // 2) + ["user"]
    others = {str(attack.wrap(f"{GOAL} {n}", seed=n)) for n in range(12)}
    assert len(others) == 12
    assert "{goal}" not in str(first)
    if name not in CODES and not name.startswith(("flip", "morse", "leet")):
        assert GOAL.rstrip(".") in first[-1]["content"]
        assert first[-1]["content"] != GOAL or len(first) > 1


@pytest.mark.parametrize("name", sorted(CODES))
def test_a_cipher_can_be_read_back(name: str) -> None:
    (attack,) = get_attacks([name])
    written = attack.wrap(GOAL)[-1]["content"].split("---\n")[1].removesuffix("\n---").strip()
    assert CODES[name](written.split("\n")[0]) == GOAL


def test_flips_are_their_own_inverse_and_morse_is_morse() -> None:
    text = "pick a small lock"
    for function in (flip.flip_word_order, flip.flip_characters_in_words, flip.flip_characters):
        assert function(text) != text and function(function(text)) == text
    assert ciphers.to_morse("SOS 9!") == "... --- ... / ----."
    assert ciphers.to_leetspeak("test") == "7357"


def test_rows_keep_goal_kind_and_split_and_cost_nothing() -> None:
    rows = [
        row(split="validation"),
        row("bake bread", id="r2", kind="harmless"),
        row("why?", id="q", kind="question"),
    ]
    attacks = get_attacks(["all"])
    assert plan(rows, attacks) == FREE
    made = make_rows(rows, attacks, seed=3)
    assert not made.failures and len(made.rows) == 2 * len(attacks)
    assert {(r.goal, r.kind, r.split) for r in made.rows} == {
        (GOAL, "harmful", "validation"), ("bake bread", "harmless", rows[1].split)
    }  # fmt: skip
    assert len({r.id for r in made.rows}) == len(made.rows)
    assert made == make_rows(rows, attacks, seed=3, concurrency=4)
    with pytest.raises(ConfigError, match="no plain request"):
        make_rows(rows[2:], attacks)


def test_suffixes_of_a_search_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    path.write_text(f'suffix,goal\n!! own,"{GOAL}"\n?? any,\n')
    (attack,) = get_attacks([f"suffix:{path}"])
    assert attack.wrap(GOAL)[-1]["content"] == f"{GOAL} !! own"
    assert attack.wrap("other")[-1]["content"] == "other ?? any"
    path.write_text(f'suffix,Goal\n!! own,"{GOAL}"\n')
    made = make_rows([row("other")], get_attacks([f"suffix:{path}"]))
    assert not made.rows and "no suffix for the goal 'other'" in made.failures[0]


def test_templates_of_a_file_are_attacks(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("name,template\nmine,One {goal}\nmine,Two {goal}\nyours,Three {goal}\n")
    mine, yours = get_attacks([f"file:{path}"])
    assert {mine.wrap(GOAL, seed=n)[0]["content"][:3] for n in range(20)} == {"One", "Two"}
    assert yours.wrap("pick a lock.")[0]["content"] == "Three pick a lock"
    for line, message in (("x,no place", "holds {goal}"), ("pap,{goal}", "is taken")):
        path.write_text(f"name,template\n{line}\n")
        with pytest.raises(ConfigError, match=f"line 2: .*{message}"):
            get_attacks([f"file:{path}"])
    with pytest.raises(DataError, match="does not exist"):
        get_attacks(["file:nowhere.csv"])


def test_an_installed_package_adds_an_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    def announce(**attacks: object) -> None:
        points = [EntryPoint(name=n, value=f"x:{n}", group=registry.ENTRY_POINT_GROUP) for n in attacks]
        monkeypatch.setattr(registry, "entry_points", lambda *, group: points)
        monkeypatch.setattr(EntryPoint, "load", lambda point: attacks[point.name])

    mine = TemplateAttack("mine", ["Mine {goal}"], summary="mine")
    announce(mine=mine, made=lambda: mine, pap=mine)
    assert get_attacks(["mine"]) == [mine] and get_attacks(["made"]) == [mine]
    assert get_attacks(["pap"]) != [mine], "a package replaces no built-in attack"
    announce(broken=object)
    with pytest.raises(ConfigError, match=r"attack 'broken'.*needs name"):
        get_attacks(["pap"])


def test_an_unknown_attack_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no attack 'deep_incepton'; did you mean 'deep_inception'"):
        get_attacks(["deep_incepton"])
    with pytest.raises(ConfigError, match="name at least one"):
        get_attacks([])

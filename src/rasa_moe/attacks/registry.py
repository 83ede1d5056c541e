"""Find attacks by name: those built in, those that installed packages announce, and those of a user's file.

A package adds an attack by an entry point in the group `rasa_moe.attacks` that names an `Attack` object, or a
callable without arguments that makes one. A file of templates is a table with the columns `name` and
`template`, where `{goal}` marks the place of the goal; several lines of one name are variants.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from rasa_moe.attacks import (
    ciphers,
    crescendo,
    flip,
    low_resource,
    many_shot,
    nested_scene,
    openings,
    past_tense,
    persuasion,
    role_play,
    written,
)
from rasa_moe.attacks.base import Attack
from rasa_moe.attacks.revised import revised_turns
from rasa_moe.attacks.suffix import SuffixAttack
from rasa_moe.attacks.template import TemplateAttack
from rasa_moe.data.rows import PLAIN_FAMILY
from rasa_moe.data.tables import read_table, text_of
from rasa_moe.errors import ConfigError

ENTRY_POINT_GROUP = "rasa_moe.attacks"
FILE_PREFIX, SUFFIX_PREFIX, TARGET_PREFIX = "file:", "suffix:", "x_teaming:"

_FILES = (
    persuasion, flip, nested_scene, openings, ciphers, past_tense, low_resource, many_shot, role_play,
    crescendo, written,
)  # fmt: skip
BUILT_IN: Mapping[str, Attack] = {attack.name: attack for file in _FILES for attack in file.ATTACKS}


def all_attacks() -> dict[str, Attack]:
    """Return every attack that has a name, those of installed packages last; none replaces a built-in one."""
    announced = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    found = dict(BUILT_IN)
    for name, point in sorted(announced.items()):
        if name in found:
            continue
        try:
            loaded = point.load()
            attack = loaded if isinstance(loaded, Attack) and not isinstance(loaded, type) else loaded()
        except (ImportError, AttributeError, TypeError) as error:
            raise ConfigError(f"attack {name!r} ({point.value}) cannot be loaded: {error}") from error
        if not isinstance(attack, Attack):
            raise ConfigError(f"attack {name!r} ({point.value}) needs name, group, summary, cost and wrap")
        found[name] = attack
    return found


def get_attacks(names: Sequence[str]) -> list[Attack]:
    """Return attacks by name, in the order given; `all` for every one that runs offline.

    Also `file:PATH` for the templates of a file, `suffix:PATH` for searched suffixes, and
    `x_teaming:URL?model=M` for a conversation with a served target.

    Raises:
        ConfigError: No name is given, or there is none like it (the nearest one is suggested).
        DataError: A file cannot be used.
    """
    known = all_attacks()
    chosen: dict[str, Attack] = {}
    for name in names:
        if name.startswith(FILE_PREFIX):
            found = attacks_of_file(Path(name.removeprefix(FILE_PREFIX)))
        elif name.startswith(SUFFIX_PREFIX):
            found = [SuffixAttack(Path(name.removeprefix(SUFFIX_PREFIX)))]
        elif name.startswith(TARGET_PREFIX):
            found = [revised_turns(name.removeprefix(TARGET_PREFIX))]
        elif name == "all":
            found = [attack for attack in known.values() if attack.cost("").calls == 0]
        elif name in known:
            found = [known[name]]
        else:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ConfigError(f"there is no attack {name!r}; {hint}choose among {', '.join(known)}")
        chosen.update({attack.name: attack for attack in found})
    if not chosen:
        raise ConfigError(f"name at least one attack; choose among {', '.join(known)}")
    return list(chosen.values())


def attacks_of_file(path: Path) -> list[Attack]:
    """Read templates of the user's own.

    Raises:
        DataError: The file cannot be read.
        ConfigError: A template has no place for the goal, or a name is taken.
    """
    table = read_table(path).require_sound()
    name_column, template_column = table.column("name"), table.column("template")
    templates: dict[str, list[str]] = {}
    for row in table.rows:
        name, template = (
            text_of(row.fields.get(name_column)).strip(),
            text_of(row.fields.get(template_column)),
        )
        if not name or "{goal}" not in template:
            raise ConfigError(f"{path}, line {row.line}: needs a name, and a template that holds {{goal}}")
        if name in BUILT_IN or name == PLAIN_FAMILY:
            raise ConfigError(f"{path}, line {row.line}: the name {name!r} is taken; choose another")
        templates.setdefault(name, []).append(template)
    return [TemplateAttack(name, found, summary=f"from {path.name}") for name, found in templates.items()]

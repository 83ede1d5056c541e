"""Find out which column of a table holds what: by usual names, or as the user says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rasa_moe.data.rows import KINDS, Kind
from rasa_moe.data.tables import Table, text_of
from rasa_moe.errors import ConfigError

# Role -> usual names, the likeliest first. Comparison ignores case.
USUAL_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "goal": ("goal", "behavior", "forbidden_prompt", "plain_prompt", "vanilla", "request", "question",
             "instruction"),
    "prompt": ("all_prompt", "all_prompts", "jailbreak_prompt", "attack_prompt", "adversarial_prompt",
               "jailbreak", "adversarial", "messages", "conversation", "conversations", "prompt"),
    "answer": ("attack_response", "output", "response", "completion", "answer", "generation"),
    "score": ("judge_score", "score", "jailbroken", "is_jailbroken", "success", "harmful"),
    "family": ("family", "attack", "attack_type", "attack_method", "method"),
    "kind": ("kind", "label"),
    "context": ("contextstring", "context", "input"),
    "split": ("split",),
    "id": ("id",),
    "group": ("group",),
    "reference": ("reference",),
}  # fmt: skip
ROLES = tuple(USUAL_COLUMNS)
# How public sets call what we call a kind.
KIND_WORDS: Mapping[str, Kind] = {
    "safe": "question",
    "unsafe": "harmful",
    "benign": "harmless",
    "toxic": "harmful",
}


def parse_columns(entries: Iterable[str]) -> dict[str, str]:
    """Read settings such as "goal=Behavior".

    Raises:
        ConfigError: One does not look like that, or names a role that does not exist.
    """
    found: dict[str, str] = {}
    for entry in entries:
        role, equals, column = (part.strip() for part in entry.partition("="))
        if not equals or not column or role not in ROLES:
            raise ConfigError(f"{entry!r} should look like goal=COLUMN, with one of {', '.join(ROLES)}")
        found[role] = column
    return found


def map_columns(
    table: Table, given: Mapping[str, str], *, kinds: Mapping[str, Kind] = KIND_WORDS
) -> dict[str, str]:
    """Decide which column plays which role; one is taken for the kind only if all its values are kinds.

    A role that is given an empty name is played by none.

    Raises:
        DataError: A column that was named is not there.
    """
    found = {role: table.column(column) for role, column in given.items() if column}
    by_name = {name.strip().casefold(): name for name in table.columns}
    for role, names in USUAL_COLUMNS.items():
        if role not in given:
            free = [by_name[name] for name in names if name in by_name]
            if role == "kind":
                free = [name for name in free if _holds_kinds(table, name, kinds=kinds)]
            name = next((name for name in free if name not in found.values()), None)
            if name is not None:
                found[role] = name
    # Beside a column of attacks the prompts may be attacks: there each row decides what it is.
    text = by_name.get("prompt")
    may_be_attacks = "family" in found and found.get("prompt") == text
    if "goal" not in found and text is not None and text not in given.values() and not may_be_attacks:
        # A list of plain prompts, or a log whose attacks stand in another column.
        found["goal"] = text
        if found.get("prompt") == text:
            del found["prompt"]
    return found


def spare_columns(table: Table, mapping: Mapping[str, str], given: Mapping[str, str]) -> dict[str, list[str]]:
    """List further columns of prompts and answers: logs that were put together name them in several ways."""
    free = {name.strip().casefold(): name for name in table.columns if name not in mapping.values()}
    return {
        role: [free[name] for name in USUAL_COLUMNS[role] if name in free]
        for role in ("prompt", "answer")
        if role in mapping and role not in given
    }


def _holds_kinds(table: Table, column: str, *, kinds: Mapping[str, Kind]) -> bool:
    values = {text_of(row.fields.get(column)).strip().casefold() for row in table.rows} - {""}
    return column.casefold() == "kind" or (bool(values) and values <= {*kinds, *KINDS})

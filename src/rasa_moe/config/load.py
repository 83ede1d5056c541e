"""Read a configuration from YAML and `key=value` overrides, and report every mistake at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rasa_moe.config.dialect import read_yaml
from rasa_moe.config.schema import Config
from rasa_moe.errors import ConfigError

_Location = tuple[str | int, ...]


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file (or the defaults) with `a.b=c` overrides applied.

    Args:
        path: A YAML file; None for the defaults.
        overrides: Settings such as "align.rounds=2"; the value is read as YAML.

    Raises:
        ConfigError: The file cannot be read, or something is wrong; the message lists every mistake.
    """
    tree = _read_file(path) if path is not None else {}
    problems = [problem for override in overrides if (problem := _apply(tree, override))]
    # A section with all its keys commented out reads as null; it means the defaults.
    tree = {key: value for key, value in tree.items() if not (value is None and _is_section(key))}
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += _explain_all(error)
    if problems:
        raise ConfigError(_listing(problems, path=path, overridden=bool(overrides)))
    return config


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two configurations differ, by dotted name, with both values."""
    first, second = dict(_flatten(one.model_dump())), dict(_flatten(other.model_dump()))
    # By repr: a budget of 1 (one expert) and of 1.0 (all of them) are equal to Python.
    return {key: (first[key], second[key]) for key in first if repr(first[key]) != repr(second[key])}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no configuration file {path}; write one with: rasa-moe init {path}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read ({error}).") from error
    try:
        tree = read_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}, line {line}: {error.problem}; mend the YAML there.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML ({error}).") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} should hold 'key: value' lines, but holds a {type(tree).__name__}.")
    return {str(key): value for key, value in tree.items()}


def _apply(tree: dict[str, Any], override: str) -> str:
    """Put one `a.b=c` into the tree; return what is wrong with it, or an empty string."""
    key, equals, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not name or not all(sections):
        return f"--set {override}: should look like align.rounds=2"
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        return f"--set {override}: the value is not YAML; put text with special characters in quotes"
    place = tree
    for section in sections:
        if not isinstance(place.get(section), dict):
            if place.get(section) is not None or _is_setting(section):
                return f"--set {override}: '{section}' holds no settings of its own"
            place[section] = {}
        place = place[section]
    place[name] = value
    return ""


def _explain_all(error: ValidationError) -> list[str]:
    """Say what is wrong with each setting, in one line a setting."""
    lines: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        # A setting with alternatives ("a share or a count") is reported once for each: keep the first.
        unknown = detail["type"] == "extra_forbidden"
        key = _dotted(detail["loc"]) if unknown else _known_part(detail["loc"])
        lines.setdefault(key, f"{key}: {_explain(detail)}")
    return list(lines.values())


def _explain(detail: ErrorDetails) -> str:
    """Say what is wrong with one setting, in the words a user of YAML knows."""
    kind, given = detail["type"], detail["input"]
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("tuple", "list")
    if kind == "extra_forbidden":
        return f"unknown key{_suggest_key(detail['loc'])}"
    if kind == "model_type":
        return f"should hold settings of its own, not {_brief(given)}"
    if kind == "value_error":
        return message
    if kind == "string_type":
        return f"should be text, not {_brief(given)}; put it in quotes"
    if kind == "string_too_short":
        return "should not be empty"
    if kind == "literal_error":
        message += _nearest(str(given), re.findall(r"'([^']*)'", detail["msg"]))
    return f"{message}, not {_brief(given)}"


def _suggest_key(location: _Location) -> str:
    """Return "; did you mean ...?" for an unknown key: a sibling first, else a key of that name anywhere."""
    *parents, name = [str(part) for part in location]
    siblings = [key for key in _all_keys() if key.split(".")[:-1] == parents]
    matches = difflib.get_close_matches(_dotted(location), siblings, n=1, cutoff=0.6)
    if not matches:
        by_name: dict[str, str] = {}
        for key in _all_keys():
            by_name.setdefault(key.rsplit(".", 1)[-1], key)
        matches = [by_name[match] for match in difflib.get_close_matches(name, by_name, n=1, cutoff=0.7)]
    return f"; did you mean {matches[0]}?" if matches else "; rasa-moe init - lists all keys"


def _nearest(word: str, choices: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, choices, n=1)
    return f" (nearest: '{matches[0]}')" if matches else ""


def _listing(problems: Sequence[str], *, path: Path | None, overridden: bool) -> str:
    places = [str(path)] if path is not None else []
    places += ["--set"] if overridden else []
    where = " and ".join(places) or "the defaults"
    if len(problems) == 1:
        return f"The configuration ({where}) has a mistake: {problems[0]}"
    return "\n  ".join([f"The configuration ({where}) has {len(problems)} mistakes:", *problems])


def _all_keys() -> list[str]:
    return [key for key, _ in _flatten(Config().model_dump(), sections=True)]


def _flatten(
    tree: Mapping[str, Any], prefix: str = "", *, sections: bool = False
) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values; with `sections`, the sections' own names as well."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if sections:
                yield f"{prefix}{key}", None
            yield from _flatten(value, f"{prefix}{key}.", sections=sections)
        else:
            yield f"{prefix}{key}", value


def _is_section(name: str) -> bool:
    field = Config.model_fields.get(name)
    return field is not None and isinstance(field.default, BaseModel)


def _is_setting(name: str) -> bool:
    return name in Config.model_fields and not _is_section(name)


def _known_part(location: _Location) -> str:
    """Return the leading part of a location that names a section or a setting."""
    keys = set(_all_keys())
    parts = [str(part) for part in location]
    while parts and ".".join(parts) not in keys:
        parts.pop()
    return ".".join(parts) or "configuration"


def _dotted(location: _Location) -> str:
    return ".".join(str(part) for part in location)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

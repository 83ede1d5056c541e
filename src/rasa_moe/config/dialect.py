"""The YAML that configurations are written in: safe, and without two traps of the standard reader.

A key given twice is an error instead of a silent win of the last one, and 1e-4 is a number instead of a text.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

_FLOAT_TAG = "tag:yaml.org,2002:float"
_EXPONENT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_FIRST_LETTERS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """Read the dialect."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                problem = f"the key '{key}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Write the dialect; it must know the same numbers, or it would leave the text 12e4567 without quotes."""


_Loader.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, _FIRST_LETTERS)
_Dumper.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, _FIRST_LETTERS)


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: It is no YAML, or a key is given twice.
    """
    return yaml.load(text, Loader=_Loader)


def write_scalar(value: object) -> str:
    """Return one value, or a list of values, as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")

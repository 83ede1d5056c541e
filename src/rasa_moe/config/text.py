"""Write a configuration as YAML whose comments are the settings' descriptions."""

from __future__ import annotations

import textwrap

from pydantic import BaseModel

from rasa_moe.config.dialect import write_scalar
from rasa_moe.config.schema import Config

_WIDTH = 100


def config_text(config: Config, *, title: str = "") -> str:
    """Return commented YAML that `load_config` reads back to an equal configuration.

    Args:
        config: The configuration.
        title: A comment for the head of the file.
    """
    lines = _comment(title, indent="") if title else []
    lines += _section_lines(config, indent="")
    return "\n".join(lines).strip() + "\n"


def _section_lines(section: BaseModel, *, indent: str) -> list[str]:
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines += ["", *_comment(field.description or "", indent=indent), f"{indent}{name}:"]
            lines += _section_lines(value, indent=indent + "  ")
        else:
            plain = list(value) if isinstance(value, tuple) else value
            lines += _comment(field.description or "", indent=indent)
            lines.append(f"{indent}{name}: {write_scalar(plain)}")
    return lines


def _comment(text: str, *, indent: str) -> list[str]:
    return textwrap.wrap(text, width=_WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")

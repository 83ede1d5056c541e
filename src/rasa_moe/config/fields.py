"""Kinds of values that settings take, and the section that holds them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _split_names(value: object) -> object:
    """Accept `a, b` and an empty value where a list of names is wanted, as a command line writes them."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
# Strict: `true` is no number, and a commit such as 12e4567 that YAML reads as a number is no text.
Text = Annotated[str, Field(min_length=1, strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
NotNegative = Annotated[float, Field(ge=0, strict=True)]
PartOfOne = Annotated[float, Field(gt=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Finite = Annotated[float, Field(strict=True)]
Number = Annotated[int, Field(strict=True)]
CountOrZero = Annotated[int, Field(ge=0, strict=True)]


class Section(BaseModel):
    """Hold settings that cannot change once read; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

"""Stop the clock that some chat templates look at.

A template that writes today's date would make a resumed run ask other prompts than the run it resumes, and
the same run give other answers next week.
"""

from __future__ import annotations

# Noon on Wednesday, 1 January 2025, code by code.
_FIXED = (
    ("%Y", "2025"),
    ("%y", "25"),
    ("%-m", "1"),
    ("%m", "01"),
    ("%B", "January"),
    ("%b", "Jan"),
    ("%-d", "1"),
    ("%d", "01"),
    ("%A", "Wednesday"),
    ("%a", "Wed"),
    ("%F", "2025-01-01"),
    ("%H", "12"),
    ("%I", "12"),
    ("%M", "00"),
    ("%S", "00"),
    ("%p", "PM"),
)
_NAME = "strftime_now"
# Transformers hands templates a function of this name; a macro of the same name stands before it.
_MACRO = (
    f"{{%- macro {_NAME}(format) -%}}{{{{- format"
    + "".join(f" | replace('{code}', '{text}')" for code, text in _FIXED)
    + " -}}{%- endmacro -%}"
)


def clock_options(template: object) -> dict[str, str]:
    """Return what to pass to `apply_chat_template` so that a template sees a clock that stands still."""
    if isinstance(template, str) and _NAME in template:
        return {"chat_template": _MACRO + template}
    return {}

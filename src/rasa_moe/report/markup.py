"""Build HTML that cannot be broken by the text inside it.

Model output is hostile text. Everything that reaches the page goes through `el`, which cleans and escapes
every plain string; only `Html` values, which `el` itself made, pass through.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

VOID_ELEMENTS = frozenset({"br", "hr", "input", "meta"})
# Joiners are format characters too, but Persian text and emoji are misspelt without them.
KEPT_FORMAT_CHARACTERS = frozenset("\u200c\u200d")
LINE_ENDS = frozenset("\u2028\u2029\x85\x0b\x0c")


class Html(str):
    """Markup that is already escaped; any other string is escaped on its way in."""

    __slots__ = ()


def clean(text: str) -> str:
    """Drop control, bidirectional and other invisible characters; replace what no font can show.

    An answer may carry an override such as U+202E that turns the reading order of the page around, or a lone
    surrogate that cannot be encoded at all.

    Args:
        text: any string, for example an answer of a model.

    Returns:
        The text with line breaks as newlines, tabs kept, and nothing invisible in it.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(map(_clean_character, lines))


def _clean_character(character: str) -> str:
    if character in "\n\t" or character in KEPT_FORMAT_CHARACTERS:
        return character
    if character in LINE_ENDS:
        return "\n"
    category = unicodedata.category(character)
    if category in ("Cc", "Cf"):
        return ""
    return "\ufffd" if category in ("Cs", "Co", "Cn") else character


def escape(text: str) -> Html:
    """Return `text` cleaned and escaped, quotes included; `Html` comes back unchanged."""
    return text if isinstance(text, Html) else Html(html.escape(clean(text), quote=True))


def join(parts: Iterable[str | None]) -> Html:
    """Escape and concatenate `parts`; None is left out, so an optional part needs no branch."""
    return Html("".join(escape(part) for part in parts if part is not None))


def el(name: str, /, *children: str | None, **attributes: str | int | float | bool | None) -> Html:
    """Make one element.

    Args:
        name: tag name.
        *children: strings (escaped), `Html` (kept) or None (left out).
        **attributes: `class_` becomes `class`, `aria_label` becomes `aria-label`; True gives a bare
            attribute, None and False give none.

    Returns:
        The element as safe markup.
    """
    opening = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    if name in VOID_ELEMENTS:
        return Html(opening)
    return Html(f"{opening}{join(children)}</{name}>")


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    shown = compact(value) if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(clean(shown), quote=True)}"'


def compact(value: float) -> str:
    """Return a coordinate with at most three decimals and no trailing zeros."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def table(head: Iterable[str], body: Iterable[Iterable[str]], *, caption: str, numbers_from: int = 1) -> Html:
    """Make a table inside a box of its own that scrolls sideways when the screen is narrow.

    Args:
        head: column headings.
        body: rows; the first cell of each is its row heading.
        caption: what the table shows, for readers of all kinds.
        numbers_from: first column set as numbers, aligned to the right; columns before it are text.

    Returns:
        The scrolling box with the table in it.
    """
    heading = el(
        "tr",
        *(el("th", cell, scope="col", class_=_alignment(at, numbers_from)) for at, cell in enumerate(head)),
    )
    rows = [_table_row(tuple(row), numbers_from) for row in body]
    content = el("table", el("caption", caption), el("thead", heading), el("tbody", *rows))
    return scroll_box(content, label=caption)


def scroll_box(content: Html, *, label: str) -> Html:
    """Wrap wide content in a box that scrolls by touch, mouse or keyboard, so that the page never does."""
    return el("div", content, class_="scroll", tabindex="0", role="region", aria_label=label)


def _table_row(cells: tuple[str, ...], numbers_from: int) -> Html:
    others = (
        el("td", cell, class_=_alignment(at, numbers_from)) for at, cell in enumerate(cells[1:], start=1)
    )
    return el("tr", el("th", cells[0], scope="row"), *others)


def _alignment(column: int, numbers_from: int) -> str | None:
    return "num" if column >= numbers_from else None


def disclosure(summary: str, *content: str | None, class_: str = "data") -> Html:
    """Make a part that is closed until the reader opens it; needs no script."""
    return el("details", el("summary", summary), *content, class_=class_)

"""Read a page the way a browser does, as far as the tests need it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = frozenset({"br", "hr", "input", "meta"})


class Page(HTMLParser):
    """Collect elements and visible text; fail on tags that do not match.

    Attributes:
        elements: (tag, attributes) in order.
        text: All text outside the style sheet.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, (tag, self._open)
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def all(self, tag: str, *, class_: str = "") -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a tag, and of a class if one is given."""
        found = [attributes for name, attributes in self.elements if name == tag]
        return [attrs for attrs in found if not class_ or class_ in (attrs.get("class") or "").split()]

    def values(self, attribute: str) -> list[str]:
        """Return the values of an attribute wherever it occurs."""
        return [
            value or "" for _, attrs in self.elements for name, value in attrs.items() if name == attribute
        ]

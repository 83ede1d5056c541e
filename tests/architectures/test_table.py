"""The page about architectures says what the tests of this folder show."""

from __future__ import annotations

from architectures.table import TARGET, page


def test_the_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == page(), "run: python tests/architectures/table.py"

"""Links in the documentation lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")


def _text(page: Path) -> str:
    return _CODE.sub("", page.read_text())


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_link_between_pages_leads_to_a_file_and_a_heading() -> None:
    links = [(page, *link) for page in PAGES for link in _LINK.findall(_text(page))]
    broken = []
    for page, path, anchor in links:
        if "://" in path or path.startswith("mailto:"):
            continue
        target = (page.parent / path) if path else page
        is_there = target.exists() and (not anchor or target.suffix != ".md" or anchor in _anchors(target))
        if not is_there:
            broken.append(f"{page.relative_to(ROOT)}: {path}#{anchor}")
    assert len(links) > 50
    assert broken == []

"""The project's docs/ folder as plain pages for staff. An installed package has no such folder beside it: no pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Page:
    name: str
    title: str
    text: str


def pages(checkout: Path = CHECKOUT) -> list[Page]:
    """In alphabetical order. Another package's docs/ is told apart by the `manage.py` that is not there."""
    if not (checkout / "manage.py").is_file():
        return []
    return [_page(path) for path in sorted((checkout / "docs").glob("*.md"))]


def _page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    first, _, rest = text.partition("\n")
    if not first.startswith("# "):
        return Page(path.stem, path.stem.replace("-", " ").capitalize(), text)
    return Page(path.stem, first.removeprefix("# ").strip(), rest.strip())

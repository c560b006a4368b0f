"""The documents for users: every link among them leads somewhere, to the file and to the heading."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *sorted(path for path in ROOT.glob("*.md")),
    *sorted(path for folder in ("docs", "conf", "ops", "loadtest") for path in (ROOT / folder).rglob("*.md")),
]
LINK = re.compile(r"\]\(([^()\s]+)\)")


def prose(path: Path) -> str:
    """The text without its blocks of code, where brackets are no links and # begins a comment."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What can stand behind # for each heading, by the rule of the usual viewers; a second one gets -1."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(path), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = sum(1 for each in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", each))
        found.add(f"{anchor}-{count}" if count else anchor)
    return found


def test_the_rule_for_anchors(tmp_path: Path) -> None:
    """Signs go, blanks become hyphens, and what looks like a heading in code is none."""
    page = tmp_path / "page.md"
    page.write_text(
        "# Is it well?\n\n## `gpop` who's, [here](x.md)\n\n```\n# no\n```\n    # no\n## 1. One\n# 1 one\n"
    )
    assert anchors(page) == {"is-it-well", "gpop-whos-here", "1-one", "1-one-1"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """A reader who follows a link finds a file, and the heading that it names."""
    dead = []
    for link in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / unquote(place)).resolve() if place else path
        if (
            not target.is_relative_to(ROOT)
            or not target.exists()
            or (anchor and target.suffix == ".md" and anchor not in anchors(target))
        ):
            dead.append(link)
    assert not dead


def test_there_are_documents_and_links() -> None:
    """None of the above passes because nothing was found."""
    assert len(DOCUMENTS) > 15
    assert sum(len(LINK.findall(prose(path))) for path in DOCUMENTS) > 100

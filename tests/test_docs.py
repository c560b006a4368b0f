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


# Tests that documents name


EVIDENCE = [ROOT / "docs/security.md", ROOT / "docs/reliability.md"]
TESTS = {path: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}


def functions_of(path: Path) -> set[str]:
    """The names of the test functions of a file."""
    return set(re.findall(r"^ *def (test_\w+)", TESTS[path], re.MULTILINE))


def files_called(name: str) -> list[Path]:
    """The files that a document means by `test_x.py`, or by a path that ends like that."""
    return [path for path in TESTS if f"/{path.relative_to(ROOT)}".endswith(f"/{name}")]


def missing(span: str) -> list[str]:
    """What a piece of code in a document names that is not there: a file of tests, a test, a selection."""
    absent = []
    for name in re.findall(r"(?<![\w/])((?:[\w./-]+/)?test_\w+\.py)", span):
        files = files_called(name)
        wanted = re.findall(rf"{re.escape(name)}::(test_\w+)", span)
        selected = re.findall(r"-k (?:'([^']+)'|(\w+))", span)
        absent += [] if files else [name]
        absent += [each for each in wanted if not any(each in functions_of(path) for path in files)]
        for words in (re.findall(r"\w+", "".join(found)) for found in selected):
            has = any(word in test for path in files for test in functions_of(path) for word in words)
            absent += [] if has else [f"-k {' '.join(words)}"]
    return absent + [
        name
        for name in re.findall(r"(?<![:\w./])(test_\w+)(?![\w.])", span)
        if not any(name in functions_of(path) for path in TESTS)
    ]


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.name)
def test_a_test_that_a_document_names_exists(path: Path) -> None:
    """What is said to be shown by a test is shown by one that is there, under that name, in that file."""
    spans = re.findall(r"`([^`\n]+)`", path.read_text("utf-8"))
    assert len([span for span in spans if "test_" in span]) > 3
    assert [name for span in spans for name in missing(span)] == []


def test_a_test_that_is_not_there_is_noticed() -> None:
    """A file, a name in the wrong file, a name alone, a selection of nothing."""
    assert (
        missing("tests/test_docs.py::test_links_lead_somewhere") == missing("test_links_lead_somewhere") == []
    )
    assert missing("./dev test tests/test_docs.py -k lead_somewhere") == []
    assert missing("tests/test_absent.py") == ["tests/test_absent.py"]
    assert missing("tests/test_log.py::test_links_lead_somewhere") == ["test_links_lead_somewhere"]
    assert missing("test_absent") == ["test_absent"]
    assert missing("./dev test tests/test_docs.py -k nothing_like_it") == ["-k nothing_like_it"]

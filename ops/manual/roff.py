"""
PURE: text to manual pages (the macros of man(7)).

The kept library for this, argparse-manpage, comes without a wheel, and knows command lines only;
the settings need the same few macros.
"""

from __future__ import annotations

from collections.abc import Iterator


def text(words: str) -> str:
    """Return text with nothing in it that roff would take for a request."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in ".'" else line for line in escaped.splitlines())


def bold(words: str) -> str:
    return f"\\fB{text(words)}\\fR"


def italic(words: str) -> str:
    return f"\\fI{text(words)}\\fR"


def head(name: str, section: int, version: str, purpose: str) -> Iterator[str]:
    """Begin a page. It has no date: it is made anew with every change, and would differ each day."""
    yield f'.TH {name.upper()} {section} "" "gpop {version}" "gpop"'
    yield from heading("NAME")
    yield f"{text(name)} \\- {text(purpose)}"


def heading(words: str) -> Iterator[str]:
    yield f'.SH "{text(words)}"'


def subheading(words: str) -> Iterator[str]:
    yield f'.SS "{text(words)}"'


def paragraph(*lines: str) -> Iterator[str]:
    yield ".PP"
    yield from lines


def tagged(tag: str, *lines: str) -> Iterator[str]:
    """A tag, and what it means below it, indented."""
    yield ".TP"
    yield tag
    yield from lines


def further(*lines: str) -> Iterator[str]:
    """One more paragraph of what was tagged."""
    yield ".IP"
    yield from lines


def literal(*lines: str) -> Iterator[str]:
    """Lines as they stand, such as commands."""
    yield from (".PP", ".nf", ".RS 4")
    yield from map(text, lines)
    yield from (".RE", ".fi")

"""The translations that are shipped: complete, clean, and of nothing that is not said."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from gpop import languages
from gpop.pop3.commands import STATES
from gpop.pop3.languages import Language
from gpop.pop3.wire import MAX_REPLY_OCTETS

PACKAGE = Path(languages.__file__).parent.parent
# Where replies to a client that may have chosen a language come from. `front.front` speaks before that.
SPEAKING = [*sorted((PACKAGE / "pop3").glob("*.py")), PACKAGE / "front" / "connection.py"]
SPEAKING += [*sorted((PACKAGE / "session").glob("*.py")), PACKAGE / "maildrop" / "statcache.py"]
# Said before any language can be chosen, or no text of a person's language.
NOT_TRANSLATED = re.compile(r"|%d %d|%b|%b %b|%d %b")
# Parts of replies, and texts that are put together.
PARTS = {"octets", "language changed", *(f"Not a command of the {state} state" for state in STATES)}

FILES = sorted(languages.FILES)


def texts_said() -> set[str]:
    """Every text of a reply in the code: arguments of ok, err and LineError, and replies written out."""
    found = set(PARTS)
    for path in SPEAKING:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                wanted = {"ok": node.args[:1], "err": node.args[:1], "LineError": node.args[1:]}.get(name, [])
                found |= {each.value for each in wanted if isinstance(each, ast.Constant)}
            elif isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                reply = re.match(rb"(?:\+OK|-ERR) (?:\[[A-Z/-]+\] )?(.*)\r\n", node.value)
                found |= {reply[1].decode("ascii")} if reply else set()
    return {text for text in found if not NOT_TRANSLATED.fullmatch(text)}


def translations(tag: str) -> dict[str, str]:
    return Language(tag, languages.FILES[tag])._texts


def test_the_texts_are_found():
    """Reading them out of the code works: one of each kind."""
    said = texts_said()
    assert {"Authentication failed", "maildrop locked and ready", "That line is too long"} <= said
    assert {"top of message follows", "scan listing follows", "bye", "octets"} <= said
    assert len(said) > 40


def test_german_french_and_spanish_are_shipped():
    """And whoever adds a file adds a language."""
    assert {"de", "es", "fr"} <= set(FILES)


@pytest.mark.parametrize("tag", FILES)
def test_every_text_is_translated(tag):
    """A text that was added or changed has to be translated; the failure lists the missing ones."""
    assert sorted(texts_said() - translations(tag).keys()) == []


@pytest.mark.parametrize("tag", FILES)
def test_nothing_is_translated_that_is_not_said(tag):
    """What is left over is a text that was changed in the code, or mistyped here."""
    assert sorted(translations(tag).keys() - texts_said()) == []


@pytest.mark.parametrize("tag", FILES)
def test_a_translation_is_one_clean_line(tag):
    """It fits a reply, breaks none, and begins with no "[": that would be a response code (RFC 2449 §6.4)."""
    language = Language(tag, languages.FILES[tag])
    for english, translation in translations(tag).items():
        assert translation.isprintable() and translation == translation.strip() and translation, english
        assert translation[0] != "[" and not set(translation) & set("<>"), english
        assert len(b"-ERR [SYS/TEMP] \r\n" + translation.encode()) <= MAX_REPLY_OCTETS, english
        plain = language.text(english, utf8=False)
        assert plain and plain.isascii(), english
        assert plain.count(b"?") == translation.count("?"), f"no ASCII for a letter in {translation!r}"
        assert not english[0].isdigit() and " = " not in english
    assert language.name(utf8=False).isascii() and language.name(utf8=True).decode() != tag


@pytest.mark.parametrize("tag", FILES)
def test_files_hold_nothing_else(tag):
    """Every line is a comment, the name, the letters or a translation, and none stands twice."""
    lines = languages.FILES[tag].decode("utf-8").splitlines()
    kinds = [line for line in lines if line and not line.startswith("#")]
    known = [line for line in kinds if line.startswith(("name: ", "ascii: ")) or " = " in line]
    assert kinds == known
    keys = [line.partition(" = ")[0] for line in kinds if " = " in line]
    assert len(keys) == len(set(keys)) == len(translations(tag))


def test_a_language_tag_has_room_in_a_frame():
    """It travels to the session; its file's name is the tag."""
    assert all(re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", tag) and len(tag) <= 35 for tag in FILES)


def test_the_files_are_in_the_package():
    """setup.py and MANIFEST.in take them along, else an installed gpop speaks English only."""
    root = PACKAGE.parent
    assert '"gpop.languages": ["*.txt"]' in (root / "setup.py").read_text("utf-8")
    assert "recursive-include gpop/languages *.txt" in (root / "MANIFEST.in").read_text("utf-8")

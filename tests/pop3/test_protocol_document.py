"""`docs/protocol.md` names the test behind every promise: each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
DOCUMENT = (TESTS.parent / "docs" / "protocol.md").read_text("utf-8")


def test_every_named_test_exists():
    """A test that was renamed or removed is noticed here."""
    named = re.findall(r"`([a-z0-9_/]+\.py)::(test_\w+)`", DOCUMENT)
    assert len(named) > 50
    for path, name in named:
        module = ast.parse((TESTS / path).read_text("utf-8"))
        functions = {each.name for each in module.body if isinstance(each, ast.FunctionDef)}
        assert name in functions, f"{path}::{name}"


def test_every_transcript_is_named():
    """And every transcript holds some promise."""
    named = set(re.findall(r"`(dialogues/\w+\.txt)`", DOCUMENT))
    assert named == {f"dialogues/{path.name}" for path in (TESTS / "dialogues").glob("*.txt")}

"""A Maildir to test on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.maildrop.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty Maildir, with the means to deliver to it and to open it."""
    made = Store(tmp_path / "Maildir")
    yield made
    made.close()

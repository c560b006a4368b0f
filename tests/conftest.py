"""What all tests share: how hypothesis runs, who is root, an empty Maildir."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# On a busy machine one example may take long without being wrong; the whole suite stays short.
hypothesis.settings.register_profile("gpop", deadline=None, max_examples=100)
hypothesis.settings.load_profile("gpop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in tests/root are skipped, in words, for everybody else."""
    if os.geteuid() == 0:
        return
    root_tests = Path(__file__).parent / "root"
    for item in items:
        if root_tests in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root: it changes users, jails or mounts"))


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """An empty Maildir."""
    for folder in ("new", "cur", "tmp"):
        (tmp_path / "Maildir" / folder).mkdir(parents=True, mode=0o700)
    return tmp_path / "Maildir"

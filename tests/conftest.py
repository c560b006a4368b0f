"""What all tests share: how hypothesis runs, who is root, an empty Maildir."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# On a busy machine one example may take long without being wrong; the whole suite stays short.
hypothesis.settings.register_profile("gpop", deadline=None, max_examples=100)
hypothesis.settings.load_profile("gpop")


ROOT_TESTS = Path(__file__).parent / "root"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which looks at the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Tests in tests/root are skipped, in words, for everybody else.

    Where tests run in several processes (pytest-xdist) each file stays in one of them, with what its tests
    share; so does tests/root, whose users, units and mounts are the machine's.
    """
    for item in items:
        changes_machine = ROOT_TESTS in item.path.parents
        if changes_machine and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: it changes users, jails or mounts"))
        if config.pluginmanager.hasplugin("xdist"):
            group = "root" if changes_machine else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """An empty Maildir."""
    for folder in ("new", "cur", "tmp"):
        (tmp_path / "Maildir" / folder).mkdir(parents=True, mode=0o700)
    return tmp_path / "Maildir"

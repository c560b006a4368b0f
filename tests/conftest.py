"""What all tests share: how hypothesis runs, who is root, an empty Maildir."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# On a busy machine one example may take long without being wrong; the whole suite stays short.
hypothesis.settings.register_profile("gpop", deadline=None, max_examples=100)
hypothesis.settings.load_profile("gpop")


ROOT_TESTS = Path(__file__).parent / "root"


def pytest_configure() -> None:
    """Ctrl-C is tested also where a script has started the tests in the background, which ignores it."""
    if os.geteuid() != 0:
        # A user has 1,024 without further ado, and some tests as many connections.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in tests/root are skipped, in words, for everybody else."""
    if os.geteuid() == 0:
        return
    for item in items:
        if ROOT_TESTS in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root: it changes users, jails or mounts"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """
    Where tests run in several processes each file stays in one of them, with what its tests share.

    So does tests/root, whose users, units and mounts are the machine's.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "tests/root" if path.startswith("tests/root/") else path

    return ByFile(config, log)


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """An empty Maildir."""
    for folder in ("new", "cur", "tmp"):
        (tmp_path / "Maildir" / folder).mkdir(parents=True, mode=0o700)
    return tmp_path / "Maildir"

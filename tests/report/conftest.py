"""A real log, whose figures are known, and a report of it."""

from __future__ import annotations

import contextlib
import json
import poplib
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpop import cli
from tests.serving import Server, Site

MESSAGE = b"Subject: something\n\nof some lines\nand more\n"
POLLS = 4


@dataclass
class Driven:
    """A log of a real gpop, and what was done to make it."""

    path: Path
    names: list[str]
    sessions: int
    hits: int
    refreshes: int
    rebuilds: int
    refused: int
    cut_off: int


@pytest.fixture(scope="session")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Driven:
    """The log of a gpop in which each kind of session came so often as is said."""
    site = Site()
    name = site.names[0]
    with Server(site) as server:
        for _ in range(1 + POLLS):
            _poll(server, name)  # a rebuild, then hits
        for _ in range(3):
            site.deliver(MESSAGE)
            _poll(server, name)  # refreshes
        (site.maildir(name) / ".statcache").unlink()
        _poll(server, name)  # a rebuild
        # From here on whether it is a hit or a refresh depends on the clock of the file system (racy).
        for _ in range(2):
            with contextlib.suppress(poplib.error_proto):
                server.pop(name, "wrong")
        client = server.pop(name)
        client.retr(1)
        client.close()
        server.wait_for_event("session_closed", 10)
        events = server.events("session_closed")
        racy = [event["cache_reason"] for event in events].count("racy")
        server.stop()
    path = tmp_path_factory.mktemp("driven") / "gpop.log"
    shutil.copy(server.log_path, path)
    site.remove()
    return Driven(path, site.names, 10, POLLS + 1 - racy, 3 + racy, 2, 2, 1)


def _poll(server: Server, name: str) -> None:
    client = server.pop(name)
    client.stat()
    client.uidl()
    client.quit()


@dataclass
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `gpop report` with these arguments, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            status = cli.main(["report", *map(str, arguments)])
        except SystemExit as end:
            status = int(end.code or 0)
        written = capsys.readouterr()
        return Outcome(status, written.out, written.err)

    yield run
    signal.signal(signal.SIGTERM, before)


_SESSION = {
    "ts": "2026-11-25T10:00:00.000Z",
    "level": "info",
    "event": "session_closed",
    "process": "front",
    "peer": "192.0.2.1",
    "peer_port": 50000,
    "local": "192.0.2.9",
    "local_port": 110,
    "login_id": 1,
    "user": "anna",
    "account": "anna",
    "tls": None,
    "cipher": None,
    "mechanism": "USER",
    "auth_source": "passwd-file",
    "auth_ms": 1.5,
    "cache": "hit",
    "cache_reason": "unchanged",
    "cache_ms": 0.2,
    "messages": 10,
    "octets": 1000,
    "retr": 0,
    "retr_octets": 0,
    "top": 0,
    "top_octets": 0,
    "marked": 0,
    "expired": 0,
    "removed": 0,
    "not_removed": 0,
    "octets_sent": 100,
    "duration_ms": 12.5,
    "close_reason": "quit",
}


def session(**changes: Any) -> dict[str, Any]:
    """A line as gpop writes it for a session, with these fields changed."""
    return _SESSION | changes


def refusal(**changes: Any) -> dict[str, Any]:
    """A line as gpop writes it for a refused login."""
    fields = {
        "ts": "2026-11-25T10:00:01.000Z",
        "level": "warning",
        "event": "login_refused",
        "process": "front",
        "peer": "198.51.100.7",
        "user": "root",
        "mechanism": "USER",
        "code": "AUTH",
        "reason": "wrong_password",
    }
    return fields | changes


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    """Write a log of these lines; text is written as it is."""
    written = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{line}\n" for line in written), "utf-8", newline="")
    return path

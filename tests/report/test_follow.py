"""`gpop report --follow`: a log that is being written, rotated either way, and fed by a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpop.report import follow
from gpop.report.follow import Tail
from tests.report.conftest import refusal, session
from tests.serving import Server, Site, wait_until

COMMAND = [sys.executable, "-m", "gpop", "report", "--follow", "--json", "--interval", "0.05"]


def line(**changes: Any) -> str:
    """A session that has just ended."""
    return json.dumps(session(ts=now(), **changes)) + "\n"


def now(ago_s: float = 0) -> str:
    return f"{datetime.now(UTC) - timedelta(seconds=ago_s):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


class Following:
    """The command, running; what it prints is read beside the test."""

    def __init__(self, *arguments: object, **how: Any) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, text=True, **how
        )
        self.last: dict[str, Any] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for each in self.process.stdout:
            self.last = json.loads(each)

    def wait(self, **expected: object) -> dict[str, Any]:
        """Wait until the figures are these; `hit` and so on are those of the cache since the start."""

        def found() -> bool:
            seen = self.last | self.last.get("cache", {})
            return all(seen.get(name) == value for name, value in expected.items())

        wait_until(found, 30, lambda: f"{expected}, last: {self.last}")
        return self.last

    def end(self) -> int:
        """Ctrl-C."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(30)
        self._reader.join(10)
        return status


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with one session in it."""
    path = tmp_path / "gpop.log"
    path.write_text(line())
    return path


@pytest.fixture
def following(log: Path) -> Iterator[Following]:
    running = Following(log)
    yield running
    running.end()


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(lines))


def test_rotation_is_noticed(log: Path, following: Following) -> None:
    """A new file under the name, also if the old one gets a last line after; and a file that is cut short."""
    following.wait(hit=1, rotations=0)
    append(log, line(), line(cache="refresh"))
    following.wait(hit=2, refresh=1)
    with log.open("a") as old:
        log.rename(log.with_suffix(".1"))
        old.write(line(cache="rebuild"))  # whoever has it open writes on
    following.wait(rebuild=1, rotations=0)
    log.write_text(line())
    following.wait(hit=3, rotations=1)
    os.truncate(log, 0)
    append(log, "")
    following.wait(hit=3, rotations=2)
    append(log, line(cache="off"))
    last = following.wait(hit=3, off=1, rotations=2)
    assert last["windows"]["minute"]["sessions"] == 6 and last["lines"] == 6
    assert following.end() == 0


def test_half_lines_wait_and_damaged_ones_are_counted(log: Path, following: Following) -> None:
    """A line counts when its end has come; what is no line of gpop's is a number."""
    following.wait(hit=1)
    whole = line()
    append(log, whole[:50])
    append(log.parent / "other", "")
    append(log, whole[50:], "supervisord says hello\n", "\n", json.dumps(refusal(ts=now())) + "\n")
    last = following.wait(hit=2, damaged=1)
    assert last["windows"]["hour"]["refused"] == 1
    assert last["last"][0]["event"] == "login_refused"


def test_windows_hold_what_is_new(log: Path, following: Following) -> None:
    """An old session counts in the hour, not in the minute."""
    append(log, json.dumps(session(ts=now(300))) + "\n", json.dumps(session(ts=now(100_000))) + "\n")
    windows = following.wait(hit=3)["windows"]
    assert [windows[name]["sessions"] for name in ("minute", "quarter", "hour")] == [1, 2, 2]


def test_standard_input_is_followed_to_its_end() -> None:
    """A pipe is shown until whoever writes it is done."""
    running = Following("-", stdin=subprocess.PIPE)
    assert running.process.stdin
    running.process.stdin.write(line())
    running.process.stdin.flush()
    running.wait(hit=1)
    running.process.stdin.write(line().rstrip("\n"))
    running.process.stdin.close()
    assert running.process.wait(30) == 0
    assert running.end() == 0
    assert running.last["cache"]["hit"] == 2


def test_a_real_server_is_followed() -> None:
    """The log of a gpop that serves, while it serves."""
    site = Site()
    with Server(site) as server:
        running = Following(server.log_path)
        for number in (1, 2):
            client = server.pop(site.names[0])
            client.quit()
            running.wait(**{"rebuild": 1, "hit": number - 1})
        running.end()
    site.remove()


def test_the_end_of_a_large_log_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with whole lines near the end, so that it begins at once."""
    monkeypatch.setattr(follow, "START_OCTETS", 25)
    path = tmp_path / "log"
    path.write_text("".join(f"line {number:03}\n" for number in range(100)))
    tail = Tail(path)
    assert tail.read() == b"line 098\nline 099\n"
    append(path, "line 100\nli")
    assert tail.read() == b"line 100\n"
    monkeypatch.setattr(follow, "MAX_REST_OCTETS", 10)
    append(path, "x" * 20)
    assert tail.read() == b"li" + b"x" * 20 + b"\n"
    tail.close()

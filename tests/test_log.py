"""How lines are written: to what is full, to what takes a part, and what is counted of it."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

from gpop.broker.tallies import Lent
from gpop.events import EVENTS, SEVERITIES, Log
from gpop.tally import Tally


def test_what_a_stalled_reader_misses_is_counted_and_reported() -> None:
    """In the log itself, before the next line that can be written, and for the metrics."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    log = Log(writing, "broker")
    log.tally = Tally(os.dup(Lent.made("broker").fd), "broker")
    while not log.dropped:
        log.write("config_warning", "warning", problem="x" * 500)
    for _ in range(3):
        log.write("config_warning", "warning", problem="x" * 500)
    octets = os.read(reading, 1 << 20)
    log.write("broker_stopped")
    events = [json.loads(line) for line in (octets + os.read(reading, 1 << 20)).splitlines()]
    assert [event["event"] for event in events[-2:]] == ["log_lines_dropped", "broker_stopped"]
    counted = log.tally.numbers
    # The report is shorter than what was dropped, so it may have gone through before there was room for more.
    reported = sum(event["lines"] for event in events if event["event"] == "log_lines_dropped")
    assert counted[log.tally.at["log_lines_dropped",]] == reported >= 4
    written = [event for event in events if event["event"] == "config_warning"]
    assert counted[log.tally.at["events", "config_warning"]] == len(written) + reported
    assert counted[log.tally.at["events", "log_lines_dropped"]] == 0
    os.close(reading)
    os.close(writing)


def test_a_line_of_which_a_part_was_written_spoils_no_other(tmp_path: Path) -> None:
    """A disk that is nearly full takes a part of a line; the next one begins on a line of its own."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    log = Log(fd, "broker")
    log.write("broker_stopped")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        log.write("broker_stopped")
        log.write("broker_stopped")
        assert log.dropped == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write("shutdown_started", sessions=0)
    first, torn, *rest = path.read_text().splitlines()
    assert json.loads(first)["event"] == "broker_stopped"
    assert len(torn) == 20
    assert [json.loads(line)["event"] for line in rest] == ["log_lines_dropped", "shutdown_started"]
    os.close(fd)


def test_no_line_through_syslog_is_too_long(tmp_path: Path) -> None:
    """Time and name stand before it, and what follows is no longer than in a file."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    log = Log(fd, "front", facility=2)
    for level, severity in SEVERITIES.items():
        line = log.line("login_refused", level, {"user": "\x01" * 512, "detail": "\x02" * 512})
        head, brace, rest = line.partition("{")
        assert head.startswith(f"<{2 * 8 + severity}>")
        assert len(brace + rest) <= 4096
        assert json.loads(brace + rest)["level"] == level
    os.close(fd)


def test_every_event_is_documented() -> None:
    """docs/log.md has a row for each."""
    text = (Path(__file__).parent.parent / "docs" / "log.md").read_text("utf-8")
    assert [name for name in EVENTS if f"`{name}`" not in text] == []


def test_a_line_to_read_along_has_lists_as_they_are(tmp_path: Path) -> None:
    """On a terminal a list is no text in quotes; text that could be taken for something else still is."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    log = Log(fd, "auth", console=True)
    log.write("auth_started", sources=["pam", "passwd-file"], cache=False, pid="1 \x1b")
    os.close(fd)
    words = (tmp_path / "log").read_text().split("auth_started", 1)[1].strip()
    assert words == 'sources=["pam", "passwd-file"] cache=false pid="1 \\u001b"'

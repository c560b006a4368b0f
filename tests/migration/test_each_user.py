"""A process for each user: what becomes of it stays its own affair."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest

from gpop.migration import each_user, journal
from gpop.migration.each_user import Report, for_each
from tests.processes.failing import free_descriptor
from tests.serving import wait_until


def reports(work, count: int, at_once: int = 4, timeout_s: float = 30) -> dict[int, Report]:
    return dict(for_each(range(count), work, at_once, timeout_s))


def test_everybody_reports() -> None:
    """Each index once, whatever the order, from a process of its own."""
    found = reports(lambda index: {"index": index, "pid": os.getpid()}, 20)
    assert {report["index"] for report in found.values()} == set(found) == set(range(20))
    assert len({report["pid"] for report in found.values()} | {os.getpid()}) == 21


def test_what_may_become_of_a_process() -> None:
    """It dies, is killed, says too much or nonsense, or meets what nobody foresaw: the others report."""

    def work(index: int) -> Report:
        if index == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 1:
            os._exit(3)
        if index == 2:
            raise ValueError("the password is swordfish")
        if index == 3:
            return {"much": "x" * (2 * each_user.MAX_REPORT_OCTETS)}
        return {"fine": index}

    found = reports(work, 6)
    assert found[0] == {"failed": "its process died (signal 9)"}
    assert found[1] == {"failed": "its process died (status 3)"}
    assert found[2]["failed"].startswith("unexpected ValueError at test_each_user.py:")
    assert "swordfish" not in str(found)
    assert "more than anybody wants to read" in found[3]["failed"]
    assert found[4] == {"fine": 4} and found[5] == {"fine": 5}


def test_a_process_has_what_it_was_given(tmp_path: Path) -> None:
    """Of the descriptors of whoever started it, it has only those that it was meant to have."""
    with open(tmp_path / "kept", "w") as kept, open(tmp_path / "secret", "w") as secret:

        def work(_index: int) -> Report:
            paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            found = {os.readlink(path) for path in paths if os.path.exists(path)}
            return {"kept": kept.name in found, "secret": secret.name in found}

        assert dict(for_each(range(2), work, 2, 30, [kept.fileno()])) == {
            0: {"kept": True, "secret": False}, 1: {"kept": True, "secret": False},
        }  # fmt: skip


def test_who_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over its time a process is killed, and does not keep the others waiting."""
    monkeypatch.setattr(each_user, "GRACE_S", 0.0)

    def work(index: int) -> Report:
        if index == 0:
            time.sleep(600)
        return {"fine": index}

    started = time.monotonic()
    found = reports(work, 4, at_once=2, timeout_s=1)
    assert found[0] == {"failed": "it took too long altogether"} and len(found) == 4
    assert time.monotonic() - started < 30


def test_whoever_stops_asking_ends_them() -> None:
    """No process is left when the caller has had enough, nor any descriptor."""
    before = set(os.listdir("/proc/self/fd"))
    asking = for_each(range(8), lambda index: {"pid": os.getpid()} if index == 0 else time.sleep(600), 4, 60)
    next(asking)
    asking.close()
    wait_until(lambda: not _children())
    assert set(os.listdir("/proc/self/fd")) == before


def _children() -> str:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read()


def test_a_journal_of_brackets_is_no_journal(tmp_path: Path) -> None:
    """JSON nested deeper than Python follows is a line that says nothing; it was a traceback."""
    path = tmp_path / "journal"
    path.write_bytes(b"[" * 50_000 + b"\n")
    with pytest.raises(journal.JournalNotUsable, match="no journal at all"):
        journal.Journal(str(path), {}, again=False)


def test_who_hangs_up_and_goes_on_is_ended() -> None:
    """A process that somebody took over closed its pipe and stayed: the whole run waited for it."""

    def work(index: int) -> Report:
        if index:
            return {"fine": index}
        os.closerange(3, 256)
        while True:
            time.sleep(60)

    started = time.monotonic()
    found = reports(work, 3)
    assert found[0] == {"failed": "its process died (signal 9)"}
    assert found[1] == {"fine": 1} and found[2] == {"fine": 2}
    assert time.monotonic() - started < 30


def test_there_may_be_fewer_processes_than_were_asked_for() -> None:
    """With no descriptor for one more the run ended in a traceback; now it waits for one that ends."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = free_descriptor(os.getpid()) + 6
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        found = reports(lambda index: {"fine": index}, most, at_once=most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found == {index: {"fine": index} for index in range(most)}


def test_another_file_is_not_emptied_for_a_journal(tmp_path: Path) -> None:
    """`--again --journal users`, a slip, took the list of users for a journal and emptied it."""
    path = tmp_path / "users"
    path.write_text("anna:secret\n")
    with pytest.raises(journal.JournalNotUsable, match="no journal, so it is left alone"):
        journal.Journal(str(path), {"server": "x"}, again=True)
    assert path.read_text() == "anna:secret\n"
    first = journal.Journal(str(tmp_path / "journal"), {"server": "x"}, again=True)
    first.note(b"anna")
    first.close()
    second = journal.Journal(str(tmp_path / "journal"), {"server": "y"}, again=True)
    assert second.done == set()
    second.note(b"bert")
    second.close()
    assert journal.Journal(str(tmp_path / "journal"), {"server": "y"}, again=False).done == {b"bert"}

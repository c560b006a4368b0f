"""The session lock: one session per maildrop, and nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from gpop.maildrop import errors, lock, system
from tests.maildrop.store import Store


def another_descriptor(store: Store) -> int:
    """A descriptor as another session has it: not a duplicate."""
    return os.open(store.path, os.O_RDONLY | os.O_DIRECTORY)


def test_a_second_session_is_refused(store: Store) -> None:
    """After a short wait, by name; once the first has closed its maildrop the second gets it."""
    first, second = store.dir_fd, another_descriptor(store)
    lock.lock(first, 0)
    opened = store.open()
    started = time.monotonic()
    with pytest.raises(errors.MaildropInUse):
        lock.lock(second, 0.1)
    assert 0.1 <= time.monotonic() - started < 5
    opened.close()
    lock.lock(second, 0)
    lock.unlock(second)
    os.close(second)
    assert sorted(os.listdir(store.path)) == [".statcache", "cur", "new", "tmp"]


def test_waiting_for_the_lock(store: Store) -> None:
    """A session that ends in time lets the next one in."""
    second = another_descriptor(store)
    lock.lock(store.dir_fd, 0)
    waiting = threading.Event()
    timer = threading.Thread(target=lambda: (waiting.wait(10), lock.unlock(store.dir_fd)))
    timer.start()
    waiting.set()
    lock.lock(second, 10)
    timer.join()
    os.close(second)


def test_a_killed_session_leaves_no_lock(store: Store) -> None:
    """The lock dies with its holder, however that ends."""
    program = (
        "import os, sys; sys.path[:0] = [sys.argv[1]]; from gpop.maildrop import lock\n"
        "lock.lock(os.open(sys.argv[2], os.O_RDONLY), 0); print('locked', flush=True); sys.stdin.read()"
    )
    package = os.path.dirname(os.path.dirname(os.path.dirname(lock.__file__)))
    command = [sys.executable, "-c", program, package, str(store.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"locked\n"
        with pytest.raises(errors.MaildropInUse):
            lock.lock(store.dir_fd, 0)
        holder.kill()
        holder.wait()
        lock.lock(store.dir_fd, 5)


def test_deliveries_are_not_locked_out(store: Store) -> None:
    """Maildir needs no lock for delivery."""
    lock.lock(store.dir_fd, 0)
    store.deliver("1700000000.a")
    assert store.poll()[0] == "rebuild"


def without_directory_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where a lock is an fcntl lock, and wants a descriptor open for writing."""
    real = system.flock

    def flock_on_nfs(fd: int, operation: int) -> None:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(fd, operation)

    monkeypatch.setattr(system, "flock", flock_on_nfs)


def test_where_directories_cant_be_locked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS a file in the Maildir is locked in its place."""
    without_directory_locks(monkeypatch)
    before = len(os.listdir("/proc/self/fd"))
    second = another_descriptor(store)
    lock.lock(store.dir_fd, 0)
    with pytest.raises(errors.MaildropInUse):
        lock.lock(second, 0)
    opened = store.open()
    opened.close()
    lock.lock(second, 0)
    lock.unlock(second)
    os.close(second)
    assert len(os.listdir("/proc/self/fd")) == before
    assert (store.path / ".gpop-lock").stat().st_size == 0


def test_a_lock_that_fails_is_no_lock_in_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault is told from a maildrop in use, at once; a link in the lock file's place is not followed."""
    without_directory_locks(monkeypatch)
    (store.path / ".gpop-lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        lock.lock(store.dir_fd, 10)
    assert not (store.path / "elsewhere").exists()

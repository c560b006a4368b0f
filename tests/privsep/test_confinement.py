"""
What a confined process can ask the kernel for, tried in processes that have the real filters on.

That real sessions, fronts and the metrics process have them is in tests/processes/test_given_up.py.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gpop.commands.check_config import report
from gpop.config import reading, seccomp
from gpop.privsep.confinement import Confinement, no_new_privileges

# Numbers that are the same on every architecture, of calls newer than libseccomp's table may be.
SYS_PIDFD_OPEN = 434
PR_SET_NAME = 15
PROTECTIONS = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
KILLED = -signal.SIGSYS
MUCH = 1 << 40  # more memory than this test has any use for


@pytest.fixture(scope="module")
def filters() -> tuple[bytes, bytes, bytes]:
    try:
        return seccomp.filters()
    except seccomp.FiltersUnavailable as error:
        pytest.skip(f"there are no filters here: {error}")


def tried(octets: bytes, act: Callable[[], object]) -> int:
    """Do something in a filtered process: 0, the errno it failed with, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            no_new_privileges()
            Confinement(octets).enter()
            act()
            status = 0
        except OSError as error:
            status = error.errno or 254
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def libc(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


ATTACKS = {
    "start a program": lambda: os.execv("/bin/true", ["true"]),
    "connect to somebody": lambda: socket.socket(socket.AF_INET),
    "talk to a daemon of this machine": lambda: socket.socket(socket.AF_UNIX),
    "talk to the kernel": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "signal a process": lambda: os.kill(os.getppid(), 0),
    "signal by descriptor": lambda: libc("syscall", SYS_PIDFD_OPEN, os.getppid(), 0),
    "read another process": lambda: libc("ptrace", 16, os.getppid(), 0, 0),
    "become another user": lambda: os.setresuid(1, 1, 1),
    "leave the jail": lambda: os.chroot("/"),
    "get a namespace of its own": lambda: libc("unshare", 0x10000000),
    "mount": lambda: libc("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "make a device": lambda: os.mknod("/tmp/gpop-no-device", 0o600 | 0o020000, os.makedev(1, 1)),
}


@pytest.mark.parametrize("which", [0, 1, 2], ids=["session", "front", "log"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_only_an_attacker_would_do_ends_the_process(filters, which, attack) -> None:
    """Whoever has taken over a process and asks for what it never needs has it no longer."""
    assert tried(filters[which], ATTACKS[attack]) == KILLED


def test_without_a_filter_the_same_calls_are_answered() -> None:
    """So that it is the filter that ends the process, and not the call."""
    assert tried(b"", ATTACKS["connect to somebody"]) == 0
    assert tried(b"", ATTACKS["signal a process"]) == 0


@pytest.mark.parametrize("which", [0, 1, 2], ids=["session", "front", "log"])
def test_what_nobody_needs_is_no_such_call(filters, which) -> None:
    """As an old kernel says it of a new call; a C library then goes another way."""
    assert tried(filters[which], lambda: libc("prctl", PR_SET_NAME, b"x", 0, 0, 0)) == errno.ENOSYS
    assert tried(filters[which], lambda: os.sched_setaffinity(0, {0})) == errno.ENOSYS


@pytest.mark.parametrize("which", [0, 1, 2], ids=["session", "front", "log"])
def test_no_process_is_started(filters, which) -> None:
    """Neither a process nor a thread, whatever the limit of processes is."""
    assert tried(filters[which], os.fork) == errno.ENOSYS


@pytest.mark.parametrize("which", [0, 1, 2], ids=["session", "front", "log"])
def test_memory_does_not_become_code(filters, which) -> None:
    """What an attacker writes into memory can't be executed."""
    assert tried(filters[which], lambda: mmap.mmap(-1, 4096, prot=PROTECTIONS)) == errno.ENOSYS
    assert tried(filters[which], lambda: mmap.mmap(-1, 4096)) == 0


def test_a_front_opens_no_file(filters) -> None:
    """Its jail is empty; without root there is no jail, and the filter holds all the same."""
    assert tried(filters[1], lambda: os.open("/etc/passwd", os.O_RDONLY)) == errno.ENOSYS


def test_a_session_does_to_its_maildir_what_it_has_to(filters, tmp_path: Path) -> None:
    """Everything that maildrops are made of goes on: files, links, renames, directories, stamps, locks."""

    def act() -> None:
        directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        os.mkdir("cur", dir_fd=directory)
        file = os.open("cur/a", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
        os.writev(file, [b"one", b"two"])
        os.pwrite(file, b"2", 0)
        os.ftruncate(file, 5)
        os.fdatasync(file)
        os.fsync(file)
        os.lockf(file, os.F_LOCK, 0)
        with mmap.mmap(file, 0, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == b"2netw"
        os.utime(file, ns=(1, 1))
        os.link("cur/a", "cur/b", src_dir_fd=directory, dst_dir_fd=directory)
        os.rename("cur/b", "cur/c", src_dir_fd=directory, dst_dir_fd=directory)
        assert sorted(os.listdir(directory)) == ["cur"]
        os.unlink("cur/c", dir_fd=directory)
        os.stat("cur/a", dir_fd=directory)

    assert tried(filters[0], act) == 0


def test_an_empty_filter_takes_nothing_away() -> None:
    assert tried(b"", lambda: os.open("/etc/passwd", os.O_RDONLY)) == 0


def test_what_is_no_filter_is_an_error() -> None:
    """The kernel refuses it, and the process learns that it is not confined."""
    assert tried(b"\xff" * 16, lambda: None) == errno.EINVAL


def test_rehearsing_takes_nothing_away(filters) -> None:
    def act() -> None:
        Confinement(filters[0]).rehearse()
        socket.socket().close()

    assert tried(b"", act) == 0


@pytest.mark.parametrize("hard", [MUCH, resource.RLIM_INFINITY])
def test_rehearsing_leaves_a_limit_of_memory_as_it_is(hard) -> None:
    """With LimitAS= in its unit gpop did not start, and with a soft limit alone that was taken away."""

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MUCH, hard))
        Confinement(b"", 1 << 30).rehearse()
        if resource.getrlimit(resource.RLIMIT_AS) != (MUCH, hard):
            raise OSError(errno.EDOM, "another limit")

    assert tried(b"", act) == 0


def test_a_limit_of_memory_that_is_lower_already_stays() -> None:
    def act() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MUCH, MUCH))
        Confinement(b"", MUCH << 1).enter()
        if resource.getrlimit(resource.RLIMIT_AS) != (MUCH, MUCH):
            raise OSError(errno.EDOM, "another limit")

    assert tried(b"", act) == 0


def test_a_machine_without_the_library_is_told(monkeypatch, tmp_path: Path) -> None:
    """A warning names the package; gpop serves all the same, unconfined in this one way."""
    monkeypatch.setattr(seccomp, "LIBRARY", "libseccomp.so.0")
    path = tmp_path / "gpop.toml"
    (tmp_path / "passwd").touch()
    server = '[server]\nlisten = ["127.0.0.1:0"]\nuser = "nobody"\n'
    path.write_text(server + '[[accounts.sources]]\ntype = "passwd-file"\npath = "passwd"\n')
    config = reading.load(str(path))
    assert config.session.session_calls == config.front.service_calls == b""
    (warning,) = [line for line in report([], config.warnings) if "seccomp" in line]
    assert "libseccomp.so.0 is not installed; Debian's package is libseccomp2" in warning

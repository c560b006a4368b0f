"""
gpop with an attacker inside: run in place of gpop/__main__.py, it is gpop but for two functions.

A session, when it is about to speak to its client for the first time, and a front, when a client comes from
ATTACKER, do what that client says, line by line. So they are in the hands of whoever plays the attacker, with
all that gpop took from them before: ids, jail, limits, descriptors, and whatever else confines them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time
from _thread import start_new_thread
from array import array
from collections.abc import Callable, Iterator

if __name__ == "__main__":
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]

from gpop import __main__ as program
from gpop import programs

ATTACKER = "127.0.0.66"
MOST_FDS = 64
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PTRACE_DETACH, PTRACE_SEIZE = 16, 17, 0x4206
CLONE_NEWNS = 0x20000
SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 434, 438
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def call(function: Callable[..., int], *arguments: object) -> None:
    """Call a function of the C library; OSError if it fails."""
    ctypes.set_errno(0)
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def open_descriptors() -> list[int]:
    """Those that are open, beside the standard files."""
    found = []
    for fd in range(3, MOST_FDS):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.append(fd)
    return found


# Attacks: each yields what to try; what does not raise has worked


def ways_to(path: str, pids: list[int]) -> Iterator[tuple[str, int | None]]:
    """A path by its name, up from every directory that is open, and through other processes' roots."""
    yield path, None
    up = "../" * 20
    yield up + path.lstrip("/"), None
    for fd in range(MOST_FDS):
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                yield up + path.lstrip("/"), fd
    for pid in [1, *pids]:
        for link in ("root", "cwd"):
            yield f"/proc/{pid}/{link}{path}", None


def read(path: str, *pids: str) -> Iterator[Callable[[], object]]:
    """Read a file, or list a directory."""
    for where, fd in ways_to(path, [int(pid) for pid in pids]):
        yield lambda where=where, fd=fd: os.read(os.open(where, os.O_RDONLY, dir_fd=fd), 100)
        yield lambda where=where, fd=fd: os.listdir(os.open(where, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd))


def write(path: str, *pids: str) -> Iterator[Callable[[], object]]:
    """Change a file, make one beside it, take it away."""
    for where, fd in ways_to(path, [int(pid) for pid in pids]):
        yield lambda where=where, fd=fd: os.open(where, os.O_WRONLY, dir_fd=fd)
        yield lambda where=where, fd=fd: os.open(where + ".new", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
        yield lambda where=where, fd=fd: os.unlink(where, dir_fd=fd)
        yield lambda where=where, fd=fd: os.chmod(where, 0o777, dir_fd=fd)
        yield lambda where=where, fd=fd: os.rename(where, where + ".away", src_dir_fd=fd, dst_dir_fd=fd)


def become(uid: str) -> Iterator[Callable[[], object]]:
    """Be root again, or another user; leave the jail; mount."""
    number = int(uid)
    yield lambda: os.setuid(number)
    yield lambda: os.seteuid(number)
    yield lambda: os.setreuid(number, number)
    yield lambda: os.setresuid(number, number, number)
    yield lambda: os.setgid(number)
    yield lambda: os.setresgid(number, number, number)
    yield lambda: os.setgroups([number])
    yield lambda: os.chroot("/")
    yield lambda: call(libc.unshare, CLONE_NEWNS)
    yield lambda: call(libc.mount, b"proc", b"/", b"proc", 0, None)


def limits() -> Iterator[Callable[[], object]]:
    """Raise what only root may raise."""

    def raise_limit(limit: int) -> None:
        most = resource.getrlimit(limit)[1]  # within the attempt: a session may not even ask
        resource.setrlimit(limit, (most + 1, most + 1))

    for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
        yield lambda limit=limit: raise_limit(limit)


def linger() -> Iterator[Callable[[], object]]:
    """Make streams for whose end it has to be waited, by whoever closes the last copy."""
    for fd in range(3, MOST_FDS):
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=os.dup(fd))
            option = struct.pack("ii", 1, 3600)
            yield lambda sock=sock, option=option: sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, option
            )


def kill(*pids: str) -> Iterator[Callable[[], object]]:
    """End, stop or mislead other processes."""
    for pid in map(int, pids):
        for number in SIGNALS:
            yield lambda pid=pid, number=number: os.kill(pid, number)
            yield lambda pid=pid, number=number: signal.pidfd_send_signal(os.pidfd_open(pid), number)


def trace(*pids: str) -> Iterator[Callable[[], object]]:
    """Take other processes over: their memory, their descriptors."""
    for pid in map(int, pids):
        for request in (PTRACE_ATTACH, PTRACE_SEIZE):
            yield lambda pid=pid, request=request: call(libc.ptrace, request, pid, 0, 0)
        yield lambda pid=pid: os.open(f"/proc/{pid}/mem", os.O_RDWR)
        yield lambda pid=pid: os.listdir(f"/proc/{pid}/fd")
        octets = ctypes.create_string_buffer(64)
        local = struct.pack("@PN", ctypes.addressof(octets), 64)
        remote = struct.pack("@PN", id(os), 64)
        yield lambda pid=pid, local=local, remote=remote: call(
            libc.process_vm_readv, pid, local, 1, remote, 1, 0
        )
        for fd in range(3, 12):
            yield lambda pid=pid, fd=fd: call(libc.syscall, SYS_PIDFD_GETFD, os.pidfd_open(pid), fd, 0)


def multiply() -> Iterator[Callable[[], object]]:
    """Be many: processes and threads."""

    def fork() -> None:
        if os.fork() == 0:
            os._exit(0)

    yield fork
    yield lambda: start_new_thread(time.sleep, (1,))


def connect(path: str) -> Iterator[Callable[[], object]]:
    """Reach a socket by its name."""
    for where, _ in ways_to(path, []):
        for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
            yield lambda where=where, kind=kind: socket.socket(socket.AF_UNIX, kind).connect(where)


def hoard() -> Iterator[Callable[[], object]]:
    """Hold descriptors until there are no more."""

    def more_than_a_session_may_have() -> None:
        kept = []
        try:
            for _ in range(64):
                kept.append(os.dup(0))
        finally:
            for fd in kept:
                os.close(fd)

    yield more_than_a_session_may_have


def flood() -> Iterator[Callable[[], object]]:
    """Noise, frames and descriptors into every channel there is, until nobody takes them; it is to fail."""
    channels = []
    for fd in open_descriptors():
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=os.dup(fd))  # the client's stream stays open
            if sock.type == socket.SOCK_SEQPACKET:
                channels.append(sock)
    for sock in channels:
        sock.settimeout(5)

        def without_end(sock: socket.socket = sock) -> None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [0] * 200))]
            for number in range(100_000):
                sock.sendmsg([os.urandom(1 + number * 997 % 60_000)], rights if number % 2 else [])

        yield without_end


def forge(what: str) -> Iterator[Callable[[], object]]:
    """Spoil the log by whatever may lead to it: cut it off, read it, fill it, write in another's name."""
    head = (
        '{"ts": "2000-01-01T00:00:00.000Z", "level": "info", "event": "%s", "process": "%s", "user": "forged"'
    )
    lines = {
        "auth": [head % ("auth_started", "auth") + "}\n"],
        "broker": [head % ("broker_stopped", "front") + "}\n"],
        "half": [head % ("login_refused", "front")],
        "noise": ["x" * 20_000],
        "flood": [head % ("login_refused", "front") + "}\n"] * 20_000,
    }

    def spoil(fd: int) -> None:
        for line in lines[what]:
            os.write(fd, line.encode())
        # To write into its pipe is a front's right, so this is no success; what becomes of it the log tells.
        raise ValueError

    for fd in range(3, MOST_FDS):
        try:
            size = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
        except OSError:
            size = 0
        if what == "cut":
            yield lambda fd=fd: os.ftruncate(fd, 0)
            yield lambda fd=fd: os.pread(fd, 100, 0)
        elif size:
            yield lambda fd=fd: spoil(fd)


def stay() -> Iterator[Callable[[], object]]:
    """Heed no signal, let go of the client, and never end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
    for fd in range(3, MOST_FDS):
        with contextlib.suppress(OSError):
            os.close(fd)
    while True:
        time.sleep(3600)
    yield


ATTACKS = {
    each.__name__: each
    for each in (
        read,
        write,
        become,
        limits,
        linger,
        kill,
        trace,
        multiply,
        connect,
        hoard,
        flood,
        forge,
        stay,
    )
}


def attacked(line: str) -> str:
    """Make the attack that a line names, every way; say which of them worked."""
    name, *arguments = line.split()
    tried, worked = 0, []
    for attempt in ATTACKS[name](*arguments):
        tried += 1
        try:
            result = attempt()
        except (OSError, RuntimeError, ValueError):
            continue
        worked.append(f"{tried}:{result!r}"[:60])
    return f"{tried} tried, {len(worked)} worked {worked}"


def obey(fd: int) -> None:
    """Do what a client says, until it is gone."""
    unread = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        poll.poll()
        octets = os.read(fd, 4096)
        if not octets:
            return
        unread += octets
        while b"\n" in unread:
            line, _, unread = unread.partition(b"\n")
            os.write(fd, attacked(line.decode()).encode() + b"\r\n")


def take_over_sessions() -> None:
    """In the broker, before it forks any: sessions are the attacker's from where they begin to serve."""
    from gpop.session import session

    broker = os.getpid()

    def taken_over(original: Callable[..., None]) -> Callable[..., None]:
        def serve(stream, *arguments):
            if os.getpid() == broker:
                return original(stream, *arguments)  # the rehearsal
            stream.flush()
            obey(stream.fd)
            return None

        return serve

    session._poll, session._converse = taken_over(session._poll), taken_over(session._converse)


def take_over_fronts() -> None:
    """In a front: it is the attacker's as soon as that connects."""
    from gpop.front.connection import Connection

    original = Connection.speak

    def speak(self, tls):
        if self.peer[0] != ATTACKER:
            return original(self, tls)
        obey(self.client.fileno())
        return "quit"

    Connection.speak = speak


if __name__ == "__main__":
    programs.MAIN = os.path.abspath(__file__)
    process = sys.argv[1] if len(sys.argv) > 1 else ""
    if process == "broker":
        take_over_sessions()
    elif process == "front-process":
        take_over_fronts()
    sys.exit(program.main())

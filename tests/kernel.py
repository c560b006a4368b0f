"""
The kernel between a real gpop and the system: the n-th call of a kind fails, or the process dies in it.

Every process of `gpop serve`, the sessions included, runs under a seccomp filter that asks us about
the calls in `KINDS` before the kernel does anything (`seccomp_unotify(2)`): go on, or fail with an
errno. Nothing of gpop is replaced, no library is preloaded (gpop's processes have an environment of their
own anyway), and nothing has to be compiled. While we are asked the process stands still, within its call: so
it can be killed there, and a copy of its files taken then is what a crash would leave.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import select
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.serving import Server, Site, wait_until

# asm/unistd_64.h
KINDS = {
    "open": {"open": 2, "openat": 257, "openat2": 437},
    "read": {"read": 0, "pread64": 17, "readv": 19, "preadv": 295},
    "write": {"write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296},
    "send": {"sendfile": 40, "sendto": 44, "sendmsg": 46},
    "receive": {"recvfrom": 45, "recvmsg": 47},
    "rename": {"rename": 82, "renameat": 264, "renameat2": 316},
    "unlink": {"unlink": 87, "unlinkat": 263},
    "link": {"link": 86, "linkat": 265},
    "fork": {"clone": 56, "fork": 57, "vfork": 58, "clone3": 435},
    "sync": {"fsync": 74, "fdatasync": 75},
    "mmap": {"mmap": 9, "mremap": 25},
    "stat": {"stat": 4, "fstat": 5, "lstat": 6, "newfstatat": 262, "statx": 332},
    "list": {"getdents64": 217},
    "lock": {"fcntl": 72, "flock": 73},
    "accept": {"accept": 43, "accept4": 288},
    "socket": {"socket": 41, "socketpair": 53, "pipe2": 293, "dup": 32},
    "option": {"setsockopt": 54, "getsockopt": 55, "getsockname": 51},
    "exec": {"execve": 59},
    "user": {"setgroups": 116, "setresuid": 117, "setresgid": 119, "chroot": 161, "chdir": 80, "fchdir": 81},
}
KIND_OF = {number: kind for kind, calls in KINDS.items() for number in calls.values()}
NAME_OF = {number: name for calls in KINDS.values() for name, number in calls.items()}

SECCOMP, PIDFD_GETFD = 317, 438
ARCH_X86_64 = 0xC000003E
NEW_LISTENER = 8  # SECCOMP_FILTER_FLAG_...
WAIT_KILLABLE = 32  # since Linux 5.19: no signal interrupts a call that we are looking at
ACTION_AVAILABLE = 2  # SECCOMP_GET_ACTION_AVAIL
ALLOW, ASK = 0x7FFF0000, 0x7FC00000
RECEIVE, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_...
NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif: id, pid, flags, then the call
ANSWER = struct.Struct("=QqiI")  # id, value, error, flags
CONTINUE = 1

_libc = ctypes.CDLL(None, use_errno=True)

# What becomes `gpop serve`: says who it is, puts the filter on, and lets itself be found by a first call.
BECOME = f"""
import ctypes, os, struct, sys
path, command = sys.argv[1], sys.argv[2:]
numbers = {sorted(KIND_OF)}
code = [(0x20, 0, 0, 4), (0x15, 1, 0, {ARCH_X86_64:#x}), (0x06, 0, 0, {ALLOW:#x}), (0x20, 0, 0, 0)]
for index, number in enumerate(numbers):
    code.append((0x15, len(numbers) - index, 0, number))
code += [(0x06, 0, 0, {ALLOW:#x}), (0x06, 0, 0, {ASK:#x})]
octets = b"".join(struct.pack("=HBBI", *each) for each in code)
filter = ctypes.create_string_buffer(octets, len(octets))
program = struct.pack("@HP", len(code), ctypes.addressof(filter))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
listener = os.open("/dev/null", os.O_RDONLY)
os.close(listener)
with open(path + ".new", "w") as file:
    file.write(f"{{os.getpid()}} {{listener}}")
os.rename(path + ".new", path)
if libc.syscall({SECCOMP}, 1, {NEW_LISTENER | WAIT_KILLABLE}, program) < 0 and (
    libc.syscall({SECCOMP}, 1, {NEW_LISTENER}, program) < 0
):
    with open(path + ".failed", "w") as file:
        file.write(os.strerror(ctypes.get_errno()))
    sys.exit(1)
os.stat("/")
os.execvp(command[0], command)
"""


@functools.cache
def missing() -> str:
    """Why calls can't be made to fail on this machine; empty if they can."""
    if platform.machine() != "x86_64":
        return "the numbers of system calls are those of x86-64"
    if os.geteuid() != 0:
        return "needs root, to watch processes of several users"
    action = ctypes.c_uint32(ASK)
    if _libc.syscall(SECCOMP, ACTION_AVAILABLE, 0, ctypes.byref(action)) < 0:
        return f"no seccomp filter can ask here: {os.strerror(ctypes.get_errno())}"
    us = os.pidfd_open(os.getpid())
    copy = _libc.syscall(PIDFD_GETFD, us, us, 0)
    problem = "" if copy >= 0 else f"no pidfd_getfd here: {os.strerror(ctypes.get_errno())}"
    for fd in (us, copy):
        if fd >= 0:
            os.close(fd)
    return problem


class Kernel:
    """
    Stands between the processes of one `gpop serve` and the system.

    Attributes:
        server: the server, ready.
        count: calls that matched since `fail`.
        failed: the calls that were made to fail since then, by name.
        problem: what went wrong in here, raised when it is stopped.
    """

    def __init__(self, site: Site) -> None:
        self.count = 0
        self.failed: Counter[str] = Counter()
        self._roles: dict[int, str] = {}
        self._rule: tuple[str, str, range, int] | None = None
        self._hook: Callable[[int, str, str], None] | None = None
        self._guard = threading.Lock()
        self._ended = False
        self._note = site.path / "filtered"
        self._broker = 0
        self.problem: BaseException | None = None
        self._thread = threading.Thread(target=self._attend, daemon=True)
        self._thread.start()
        self.server = Server(site, started_by=[sys.executable, "-I", "-S", "-c", BECOME, str(self._note)])

    def stop(self) -> None:
        """Stop the server, and then look away."""
        self.heed_nothing()
        try:
            self.server.stop()
        finally:
            self._ended = True
            self._thread.join(30)
        assert self.problem is None, self.problem

    def fail(self, role: str, kind: str, nth: int, error_number: int, times: int = 1) -> None:
        """
        The `nth` call from now on of a kind, in processes of a role, fails; so do those right after it.

        In the broker only as long as it is the same program: there is no way back from an exec.
        """
        with self._guard:
            self.count, self.failed = 0, Counter()
            self._rule = role, kind, range(nth, nth + times), error_number

    def watch(self, hook: Callable[[int, str, str], None]) -> None:
        """Call `hook(pid, role, name of the call)` before every call; the process waits meanwhile."""
        with self._guard:
            self._hook = hook

    def heed_nothing(self) -> None:
        """All calls succeed again."""
        with self._guard:
            self._rule = self._hook = None

    def _attend(self) -> None:
        try:
            listener = self._listener()
            poller = select.poll()
            poller.register(listener, select.POLLIN)
            buffer = ctypes.create_string_buffer(NOTIFICATION.size)
            while not self._ended:
                for _, events in poller.poll(100):
                    if events & select.POLLIN:
                        self._one(listener, buffer)
                    elif events & select.POLLHUP:
                        return  # nobody has the filter any more
        except BaseException as problem:  # shown by the test, whose thread this is not
            self.problem = problem
            raise

    def _listener(self) -> int:
        """Take the descriptor by which the kernel asks out of the process that put the filter on."""
        wait_until(lambda: self._note.exists() or self._ended, 60)
        self._broker, number = (int(word) for word in self._note.read_text().split())
        process = os.pidfd_open(self._broker)
        taken = -1

        def take() -> bool:
            nonlocal taken
            taken = _libc.syscall(PIDFD_GETFD, process, number, 0)
            return taken >= 0

        wait_until(take, 30)
        os.close(process)
        return taken

    def _one(self, listener: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        ctypes.memset(buffer, 0, len(buffer))
        if _libc.ioctl(listener, ctypes.c_ulong(RECEIVE), buffer) < 0:
            return  # it was killed before we looked
        notification, pid, _, number, _, _, *arguments = NOTIFICATION.unpack(buffer.raw)
        error_number = self._judge(pid, number, arguments)
        answer = (
            ANSWER.pack(notification, 0, -error_number, 0)
            if error_number
            else ANSWER.pack(notification, 0, 0, CONTINUE)
        )
        _libc.ioctl(listener, ctypes.c_ulong(SEND), answer)

    def _judge(self, pid: int, number: int, arguments: list[int]) -> int:
        """Which errno a call is to fail with, 0 for none."""
        with self._guard:
            rule, hook = self._rule, self._hook
            if hook:
                hook(pid, self.role(pid), NAME_OF[number])
            if not rule or self.role(pid) != rule[0]:
                return 0
            if KIND_OF[number] == "exec" and pid == self._broker:
                self._rule = None  # an upgrade: from here on it is another program
            if KIND_OF[number] != rule[1]:
                return 0
            self.count += 1
            if self.count in rule[2]:
                self.failed[NAME_OF[number]] += 1
                return rule[3]
            return 0

    def role(self, pid: int) -> str:
        """Which process it is: "broker", "auth", "front", "log", "session", ...; or "other"."""
        known = self._roles.get(pid)
        if known:
            return known
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            return "other"
        for kind in ("front", "auth", "log"):
            if f"{kind}-process".encode() in arguments:
                if parent == self._broker:
                    self._roles[pid] = kind
                    return kind
                return "checker"
        if parent == self._broker and (b"read-config" in arguments or b"trial" in arguments):
            return "inquiry"
        if b"broker" not in arguments:
            return "other"
        if pid == self._broker:
            self._roles[pid] = "broker"
            return "broker"
        return "session"


def named(error_number: int) -> str:
    """The name of an errno."""
    return errno.errorcode[error_number]

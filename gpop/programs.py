"""
EDGE: starting gpop's programs: the broker from `gpop serve`, all others from the broker.

Executed as root by both. It sees settings and descriptors, never a login.
"""

from __future__ import annotations

import marshal
import os
import sys

from gpop import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

MAIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")


def installing(extra: str) -> str:
    """
    What to type where a package is missing, for the very Python that runs.

    Another one's pip has no gpop yet, and would fetch whatever has that name where it looks.
    """
    return f"{sys.executable} -m pip install 'gpop[{extra}]'"


def broker_command(arguments: Sequence[str]) -> list[str]:
    """The command line of the broker. Without `site`, whose pages would be copied into every session."""
    return [sys.executable, "-I", "-S", MAIN, "broker", *arguments]


def broker_environment() -> dict[str, str]:
    """
    The environment of the broker, and so of every session.

    Symbols resolved before the first fork are not resolved again in every session, and the plain
    locale maps no files; Python takes it for UTF-8 all the same (PEP 540).
    """
    return environment() | {"LD_BIND_NOW": "1", "LC_ALL": "C"}


def start_program(
    arguments: Sequence[str],
    keep: Sequence[int],
    stdout: int = 1,
    lean: bool = False,
    returns_memory: bool = False,
) -> int:
    """
    Start a gpop process of its own program; return its pid. It has the descriptors 0-2 and `keep`.

    `lean`: it needs nothing but the standard library. `returns_memory`: what it needs at times can go back to
    the system, page by page. Python's own allocator has pieces of a MiB, and one object keeps a whole one.

    The environment is empty but for what is set here: what an administrator's shell
    happened to hold ($DISPLAY, $PYTHONPATH, $LD_…) reaches no process of gpop's.

    Raises:
        OSError: there can't be another process now.
    """
    # As -I, which would not see our own PYTHONMALLOC.
    options, variables = ["-P", "-s"], environment()
    if lean:
        options.append("-S")
    if returns_memory:
        variables["PYTHONMALLOC"] = "malloc"
    return start_command([sys.executable, *options, MAIN, *arguments], variables, keep, stdout)


def start_command(
    command: list[str],
    with_environment: dict[str, str],
    keep: Sequence[int],
    stdout: int = 1,
    stderr: int = 2,
) -> int:
    """As `start_program`, for a whole command line and another environment."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signals.set_wakeup_fd(-1)
        signals.handle(signals.TERM, signals.SIG_DFL)
        # These may be sent to all of a terminal's or a service's processes; the broker alone heeds them.
        for number in (signals.INT, signals.HUP, signals.USR1, signals.USR2):
            signals.handle(number, signals.SIG_IGN)
        for fd in keep:
            os.set_inheritable(fd, True)
        if stdout != 1:
            os.dup2(stdout, 1)
        if stderr != 2:
            os.dup2(stderr, 2)
        os.execve(command[0], command, with_environment)
    finally:
        os._exit(127)


def environment() -> dict[str, str]:
    """The environment of every gpop process."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def memory_file(name: str, octets: bytes) -> int:
    """
    Return a descriptor of a file in memory that holds `octets`, all of them, to be read from its start.

    Raises:
        OSError: there is no memory for it, or no descriptor.
    """
    fd = os.memfd_create(name)
    try:
        rest = memoryview(octets)
        while rest:
            rest = rest[os.write(fd, rest) :]  # a part, where there is no room for more
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


def settings_file(settings: dict[str, Any]) -> int:
    """Return a file in memory with `settings`, for `read_settings`. Raises OSError."""
    return memory_file("gpop-settings", marshal.dumps(settings))


def read_settings(fd: int) -> dict[str, Any]:
    """Return what `settings_file` wrote, and close the descriptor."""
    with open(fd, "rb") as file:
        settings: dict[str, Any] = marshal.load(file)
    return settings


class Inquiry:
    """
    A short-lived process that finds something out: no parser and no untried code runs in the broker.

    Attributes:
        pid: the process.
        fd: readable when it has said something; the owner calls `read` then.
        started: monotonic seconds.
    """

    __slots__ = ("_octets", "fd", "pid", "started")

    def __init__(self, start: Callable[[int], int], now: float) -> None:
        """
        Have `start` start it, with a descriptor for what it has to say; returns the pid.

        Raises:
            OSError: there can't be another process now.
        """
        self.started = now
        self._octets = bytearray()
        self.fd, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        try:
            self.pid = start(writing)
        except OSError:
            os.close(self.fd)
            raise
        finally:
            os.close(writing)

    def read(self) -> bool:
        """Take what it has said; returns False when there is nothing more."""
        try:
            octets = os.read(self.fd, 65536)
        except BlockingIOError:
            return False  # it has ended, and a process that it started holds the pipe: that has no say
        self._octets += octets
        return bool(octets)

    def said(self) -> bytes:
        """Return all that it has said, once its process has ended."""
        while self.read():
            pass
        os.close(self.fd)
        return bytes(self._octets)


def read_config(config_path: str, now: float) -> Inquiry:
    """Have the config read and checked; what is said then is for `config_answer`. Raises OSError."""
    return Inquiry(lambda fd: start_program(["read-config", config_path], [], stdout=fd), now)


def config_answer(octets: bytes, status: int) -> dict[str, Any]:
    """Return {"settings", "warnings"} or {"errors"}: what `read-config` has said until it ended so."""
    try:
        answer: dict[str, Any] = marshal.loads(octets)
    except (ValueError, TypeError, EOFError):
        ended = f"ended by {signals.name_of(-status)}" if status < 0 else f"ended with status {status}"
        return {"errors": [f"the config could not be read: its reader {ended}; is the installation whole?"]}
    return answer

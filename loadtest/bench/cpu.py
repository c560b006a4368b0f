"""
What a server costs: the CPU time of every process of it, children that have ended included.

A control group of its own counts exactly (version 2 or 1, whichever can be made here). Where none can
be made, the process tree under the server's first process is added up from /proc, in clock ticks: good
to a few per cent over a second of load. Both know which processes are the server's, so that it can be
ended to the last one.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# A server is at rest when it has used less than this between two looks.
REST_S = 0.0003
LOOK_S = 0.06
# Fields of /proc/PID/stat after the closing parenthesis of the name (proc(5) counts the state as 3).
PARENT, USER, SYSTEM, CHILDREN_USER, CHILDREN_SYSTEM, STARTED = 1, 11, 12, 13, 14, 19


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds."""

    total: float
    user: float
    system: float

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.total - earlier.total, self.user - earlier.user, self.system - earlier.system)

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.total + other.total, self.user + other.user, self.system + other.system)


NOTHING = Usage(0.0, 0.0, 0.0)


class Meter(Protocol):
    """Counts one server; differences below `least_s` say nothing."""

    kind: str
    least_s: float

    def enter(self, command: list[str]) -> list[str]:
        """Return the command that runs `command` where it is counted."""

    def started(self, pid: int) -> None:
        """Learn the server's first process."""

    def usage(self) -> Usage:
        """CPU seconds so far."""

    def pids(self) -> list[int]:
        """The processes alive."""

    def remove(self) -> None:
        """Leave nothing behind; no process is left."""


class GroupV2:
    """A control group of version 2; no controller has to be on for it to count CPU time."""

    kind = "cgroup v2"
    least_s = 0.0

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def enter(self, command: list[str]) -> list[str]:
        procs = shlex.quote(str(self.path / "cgroup.procs"))
        return ["/bin/sh", "-c", f'echo $$ > {procs} && exec "$@"', "sh", *command]

    def started(self, pid: int) -> None:
        pass

    def usage(self) -> Usage:
        lines = (self.path / "cpu.stat").read_text().splitlines()
        figures = {name: int(value) / 1e6 for name, value in (line.split() for line in lines)}
        return Usage(figures["usage_usec"], figures["user_usec"], figures["system_usec"])

    def pids(self) -> list[int]:
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]

    def remove(self) -> None:
        # A group is busy for a moment after its last process has ended.
        deadline = time.monotonic() + 2
        while self.path.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            time.sleep(0.01)


class GroupV1(GroupV2):
    """A control group of version 1, controller cpuacct."""

    kind = "cgroup v1"

    def usage(self) -> Usage:
        def read(name: str) -> float:
            return int((self.path / name).read_text()) / 1e9

        return Usage(read("cpuacct.usage"), read("cpuacct.usage_user"), read("cpuacct.usage_sys"))


class ProcessTree:
    """The first process and its descendants, from /proc."""

    kind = "/proc"
    least_s = 10 * TICK_S  # each process is rounded to ticks by itself

    def __init__(self) -> None:
        self.first = 0

    def enter(self, command: list[str]) -> list[str]:
        return command

    def started(self, pid: int) -> None:
        self.first = pid

    def usage(self) -> Usage:
        """Of a descendant that has ended and was not reaped by its parent nothing is known."""
        total = NOTHING
        for pid in self.pids():
            total += usage_of(pid)
        return total

    def pids(self) -> list[int]:
        parents = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                fields = stat_fields(int(name))
                parents[int(name)] = int(fields[PARENT]) if fields else 0
        found = {self.first} & parents.keys()
        size = 0
        while size != len(found):
            size = len(found)
            found |= {pid for pid, parent in parents.items() if parent in found}
        return sorted(found)

    def remove(self) -> None:
        pass


def stat_fields(pid: int) -> list[str]:
    """Return /proc/PID/stat from the state on, [] if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def identified(pids: Iterable[int]) -> set[tuple[int, str]]:
    """Return the processes of these that are alive, with their start times: a pid alone may be used again."""
    found = ((pid, stat_fields(pid)) for pid in pids)
    return {(pid, fields[STARTED]) for pid, fields in found if fields and fields[0] not in "ZX"}


def usage_of(pid: int, children: bool = True) -> Usage:
    """CPU seconds of a process, and of the children that it has reaped."""
    fields = stat_fields(pid)
    if not fields:
        return NOTHING
    user, system = int(fields[USER]), int(fields[SYSTEM])
    if children:
        user += int(fields[CHILDREN_USER])
        system += int(fields[CHILDREN_SYSTEM])
    return Usage((user + system) * TICK_S, user * TICK_S, system * TICK_S)


def new_meter(name: str, wanted: str = "auto") -> Meter:
    """
    Return a meter for the server `name`, the best that can be had here.

    Raises:
        OSError: `wanted` is a kind of control group that can't be made here.
    """
    makers = {"cgroup2": _v2, "cgroup1": _v1}
    if wanted == "proc":
        return ProcessTree()
    if wanted != "auto":
        return makers[wanted](name)
    for make in makers.values():
        with contextlib.suppress(OSError):
            return make(name)
    return ProcessTree()


def kind_here(wanted: str = "auto") -> str:
    """
    Return the kind of meter that can be had here.

    Raises:
        OSError: as `new_meter`.
    """
    meter = new_meter(f"{os.getpid()}-first", wanted)
    meter.remove()
    return meter.kind


def settled(meter: Meter, limit_s: float = 1.5) -> Usage:
    """Wait until the server is at rest (sessions have ended and are reaped), and return its usage."""
    deadline = time.monotonic() + limit_s
    before = meter.usage()
    while True:
        time.sleep(LOOK_S)
        now = meter.usage()
        if now.total - before.total < REST_S or time.monotonic() > deadline:
            return now
        before = now


def _v2(name: str) -> Meter:
    """
    Make a group below the one we are in.

    Raises:
        OSError: that can't be done here.
    """
    return GroupV2(_own_group("cgroup2", "") / f"gpop-bench-{name}")


def _v1(name: str) -> Meter:
    return GroupV1(_own_group("cgroup", "cpuacct") / f"gpop-bench-{name}")


def _own_group(file_system: str, controller: str) -> Path:
    """Return the directory of the control group that we are in."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mounted_on, kind, options = line.split()[:4]
        if kind == file_system and (not controller or controller in options.split(",")):
            break
    else:
        raise FileNotFoundError(f"no {file_system} with {controller or 'anything'} is mounted")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return Path(mounted_on + path.rstrip("/"))
    raise FileNotFoundError(f"this process is in no {file_system}")

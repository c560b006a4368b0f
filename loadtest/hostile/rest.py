"""
What a server has while nobody is connected: its processes, their descriptors and memory.

After an attack it has to be what it was before. Reads /proc; changes nothing. Executed by
`python -m loadtest.hostile`, as root or as whoever runs the server.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest import trouble
from loadtest.memory import own_kib

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Rest:
    """Of a server: the lasting processes by pid, what each has of its own, and how many others there are."""

    lasting: dict[int, str]
    descriptors: dict[int, int]
    memory_kib: dict[int, int]
    sessions: int
    checkers: int

    def kinds(self) -> dict[str, int]:
        return dict(Counter(self.lasting.values()))


def look(server: trouble.Server) -> Rest:
    """What there is now. A process that has just ended has nothing."""
    lasting = server.lasting()
    auths = [pid for pid, kind in lasting.items() if kind == "auth"]
    return Rest(
        lasting,
        {pid: _descriptors(pid) for pid in lasting},
        {pid: _memory_kib(pid) for pid in lasting},
        sum(kind == "session" for kind in server.children().values()),
        sum(len(trouble.children(pid)) for pid in auths),
    )


async def settled(server: trouble.Server, is_back: Callable[[Rest], bool], within_s: float) -> Rest:
    """Wait until there is neither session nor checker and `is_back` says yes; look in any case."""
    deadline = time.monotonic() + within_s
    while True:
        now = look(server)
        if (not now.sessions and not now.checkers and is_back(now)) or time.monotonic() > deadline:
            return now
        await asyncio.sleep(POLL_S)


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _memory_kib(pid: int) -> int:
    try:
        return own_kib(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0

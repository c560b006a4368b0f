"""Descriptors of the test's own process: how many there are, and a shortage of them."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Iterator


def open_descriptors() -> int:
    """How many descriptors this process has, not counting those of garbage from before."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """All descriptors of this process but `count` are in use."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count + 2, limits[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

"""The n-th system call of gpop.maildrop fails: the one thing in these tests that is not real."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import pytest

from gpop.maildrop import system

# Sleeping can't fail.
CALLS = sorted(
    name
    for name, value in vars(system).items()
    if callable(value)
    and not name.startswith("_")
    and name != "sleep"
    and not isinstance(value, FunctionType)
)


class Calls:
    """Counts the calls; the `failing`-th (from 1, 0 for none) raises OSError with `error_number`."""

    def __init__(self, failing: int = 0, error_number: int = 0) -> None:
        self.failing = failing
        self.error_number = error_number
        self.count = 0
        self.by_name: Counter[str] = Counter()
        self.order: list[str] = []
        self.octets_read = 0
        self.failed = ""

    def wrapped(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            self.by_name[name] += 1
            self.order.append(name)
            if self.count == self.failing:
                self.failed = name
                raise OSError(self.error_number, os.strerror(self.error_number))
            result = real(*arguments, **named)
            if name in ("read", "pread"):
                self.octets_read += len(result)
            return result

        return call


@contextmanager
def watched(failing: int = 0, error_number: int = 0) -> Iterator[Calls]:
    """Count, and fail, the system calls made meanwhile."""
    calls = Calls(failing, error_number)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(system, name, calls.wrapped(name, getattr(system, name)))
        yield calls


def test_the_seam_is_whole() -> None:
    assert {"open_file", "read", "pread", "write", "rename", "unlink", "link", "stat", "scandir"} <= set(
        CALLS
    )

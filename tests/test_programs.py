"""Starting programs: what they are handed, and processes that are asked something."""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest

from gpop import programs
from tests.descriptors import open_descriptors

LIVES_S = 60


def test_settings_are_handed_over_whole_or_not_at_all():
    """
    A file in memory takes a part where there is no room for all, and says how much.

    That was not looked at. A broker that is upgraded had its state cut short that way, and the next one
    could not read it.
    """
    settings = {"x": "y" * 100_000}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = open_descriptors()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError):
            programs.settings_file(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_descriptors() == before
    assert programs.read_settings(programs.settings_file(settings)) == settings


def test_a_process_that_left_a_child_behind_is_not_waited_for():
    """
    The child holds the pipe; the broker read on, for as long as that lived, and did nothing else.

    Who reads the config is killed after a minute, and may have a process of its own for a map that hangs.
    """
    reading, writing = os.pipe()

    def start(fd: int) -> int:
        pid = os.fork()
        if pid == 0:
            os.write(fd, b"said")
            if os.fork():
                os._exit(0)
            signal.alarm(LIVES_S)
            os.close(writing)
            os.read(reading, 1)  # until the test is past this
            os._exit(0)
        return pid

    inquiry = programs.Inquiry(start, time.monotonic())
    os.waitpid(inquiry.pid, 0)
    started = time.monotonic()
    assert inquiry.said() == b"said"
    os.close(writing)
    os.close(reading)
    assert time.monotonic() - started < LIVES_S / 2


@pytest.mark.parametrize("status, said", [(-9, "ended by SIGKILL"), (1, "ended with status 1")])
def test_a_reader_of_the_config_that_was_killed_is_no_broken_installation(status, said):
    """As it is after a minute, when a directory server hangs say; the log spoke of the installation alone."""
    (error,) = programs.config_answer(b"", status)["errors"]
    assert said in error

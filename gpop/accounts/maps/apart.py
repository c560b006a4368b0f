"""
EDGE: doing something in a process of its own, because a damaged LMDB file may end whoever reads it.

For commands and for checking a config. A login has a process of its own anyway: its checker.
"""

from __future__ import annotations

import marshal
import os
import signal
from collections.abc import Callable
from typing import Any

from gpop import signals
from gpop.accounts.maps.errors import MapError

MAX_SECONDS = 60


def run_apart(what: Callable[[], Any]) -> Any:
    """
    Return what `what()` returns: plain values.

    Raises:
        MapError: it raised that, or its process ended without a word.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _run(what, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        octets = pipe.read()
    status = os.waitpid(pid, 0)[1]
    if octets:
        is_error, answer = marshal.loads(octets)
        if is_error:
            raise MapError(answer)
        return answer
    number = os.waitstatus_to_exitcode(status)
    if number == -signal.SIGALRM:
        raise MapError(f"no answer within {MAX_SECONDS} s")
    how = signals.name_of(-number) if number < 0 else f"status {number}"
    raise MapError(f"the process that read it was ended ({how}): a map file is damaged")


def _run(what: Callable[[], Any], writer: int) -> None:
    """The process' whole life; never returns."""
    try:
        for number in (signal.SIGALRM, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(MAX_SECONDS)
        try:
            answer = (False, what())
        except MapError as error:
            answer = (True, str(error))
        with open(writer, "wb") as pipe:
            pipe.write(marshal.dumps(answer))
    finally:
        os._exit(1)

"""
EDGE: from `gpop serve` to the broker: check the config, then become the broker's program.

The config is read here and not in the broker, which must stay lean; what it says is
handed over as plain values. What has to hold for every gpop process is set here, because
all of them descend from this one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

from gpop import programs
from gpop.commands.check_config import report
from gpop.config import ConfigErrors, reading

# linux/prctl.h; ctypes is loaded here, where it is gone with the exec.
PR_SET_NO_NEW_PRIVS = 38


def serve(config_path: str) -> int:
    """
    Check the config and become the broker; returns only if that can't be, with the exit status.

    Log lines go to standard output, problems found before that to standard error.
    """
    # Until the broker can heed it (`signals.install`): it must not end a server that is about to start.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        settings = reading.load(config_path)
    except ConfigErrors as errors:
        for line in report(errors.problems, errors.warnings):
            print(f"gpop: {line}", file=sys.stderr)
        return 2
    for line in report([], settings.warnings):
        print(f"gpop: {line}", file=sys.stderr)
    _no_new_privileges()
    # Core dumps would hold mail, and auth's would hold passwords.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    settings_fd = programs.settings_file(settings.as_plain())
    os.set_inheritable(settings_fd, True)
    arguments = ["broker", os.path.abspath(config_path), str(settings_fd)]
    # Symbols resolved before the first fork are not resolved again in every session, and the plain
    # locale maps no files; Python takes it for UTF-8 all the same (PEP 540).
    environment = programs.environment() | {"LD_BIND_NOW": "1", "LC_ALL": "C"}
    sys.stdout.flush()
    os.chdir("/")
    # Without `site`: each of its pages would be copied into every session.
    command = [sys.executable, "-I", "-S", programs.MAIN, *arguments]
    os.execve(sys.executable, command, environment)


def _no_new_privileges() -> None:
    """No process of gpop's, and nothing they execute, may gain privileges by a set-uid program."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")

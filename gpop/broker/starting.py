"""
EDGE: what the broker does once, around its start: its folders, its standard files, the end of imports.

Executed by the broker, as root, before the first login.
"""

from __future__ import annotations

import fcntl
import os
import sys

PID_FILE = "broker.pid"


class StartFailed(Exception):
    """gpop can't start; the text says why."""


def prepare_run_directory(run_dir: str) -> None:
    """
    Make the empty directory in which the fronts are jailed.

    Raises:
        StartFailed: it can't be made.
    """
    if os.geteuid() != 0:
        return
    try:
        os.makedirs(os.path.join(run_dir, "empty"), 0o755, exist_ok=True)
    except OSError as error:
        raise StartFailed(f"server.run_dir: {run_dir}: {error.strerror}") from error


def claim_run_directory(run_dir: str) -> int:
    """
    Say that the directory is ours until the descriptor that is returned is closed, or we end; -1 is none.

    A second gpop would take the control socket away from the first, and its broker.pid with its own end.

    Raises:
        StartFailed: another gpop has it.
    """
    if os.geteuid() != 0 and not os.access(run_dir, os.W_OK):
        return -1  # nothing of ours will be in it
    directory = -1
    try:
        directory = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(directory)
        text = f"{run_dir}: another gpop{_number_in(run_dir)} has it; each needs one of its own"
        raise StartFailed(f"server.run_dir: {text}") from None
    except OSError:
        return directory  # no such lock on this file system: as it was without
    return directory


def _number_in(run_dir: str) -> str:
    try:
        with open(os.path.join(run_dir, PID_FILE), "rb") as file:
            return f" (process {int(file.read(16))})"
    except (OSError, ValueError):
        return ""


def write_pid_file(run_dir: str) -> str:
    """
    Say who is to be signalled, to logrotate for one; returns the path, "" if there is none.

    What can't be written is no reason not to serve: it is missing then, and nobody is signalled.
    """
    if os.geteuid() != 0:
        return ""
    path = os.path.join(run_dir, PID_FILE)
    try:
        # Octets: after an upgrade no codec can be loaded any more.
        with open(path, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(b"%d\n" % os.getpid())
    except OSError:
        return ""
    return path


def remove_pid_file(path: str) -> None:
    """Nobody with our number is to be signalled any more; a gpop that has started since is."""
    try:
        with open(path, "rb") as file:
            is_ours = file.read(16) == b"%d\n" % os.getpid()
        if is_ours:
            os.unlink(path)
    except OSError:
        return  # there was none, or somebody was faster


def drain_pipe(fd: int) -> None:
    """Read what a signal has written."""
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        return


def read_boot_id() -> bytes:
    """The kernel's name for this boot: after another one, a cache may be torn that looks whole."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read(64).strip().replace(b"-", b"")
    except OSError:
        return b""


def forget_standard_files() -> None:
    """0, 1 and 2 become /dev/null, for the sessions too: nobody may write into a mail user's stream."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def close_import_system() -> None:
    """After this nothing can be imported: in a jail an import would run the user's file."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()

"""
EDGE: where the log goes: standard output, a file, or the socket of the system's syslog.

Executed by the broker, as root, at its start and when the log is to be opened anew (SIGUSR1, or another
syslog daemon). The other processes are jailed or may not read such paths: they are handed the descriptor.
"""

from __future__ import annotations

import _socket
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.config import BrokerSettings

# What is written never waits, whatever it is written to; see `events.Log` for sockets.
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
# The umask takes the group's part away; it is logrotate's `create`, or whoever made the file, that gives it.
FILE_MODE = 0o640

# RFC 5424 §6.2.1: those that a mail server may well be told to use.
FACILITIES = {"mail": 2, "daemon": 3} | {f"local{number}": 16 + number for number in range(8)}


def open_target(settings: BrokerSettings) -> int:
    """
    Return a new descriptor of where `settings` say the log goes.

    Raises:
        OSError: it can't be opened, or it is something else.
    """
    if settings.log_target == "file":
        return open_file(settings.log_path)
    if settings.log_target == "syslog":
        return open_syslog(settings.log_syslog_socket)
    return open_again(1)


def place_of(settings: BrokerSettings) -> str:
    """Return the path of the file or socket that the log goes to, "" for standard output."""
    paths = {"file": settings.log_path, "syslog": settings.log_syslog_socket}
    return paths.get(settings.log_target, "")


def facility_of(settings: BrokerSettings) -> int:
    """Return the facility for syslog, -1 if the log goes elsewhere."""
    return FACILITIES[settings.log_syslog_facility] if settings.log_target == "syslog" else -1


def open_again(fd: int) -> int:
    """
    Return a descriptor for the same file as `fd` which never blocks, for this process and its children.

    O_NONBLOCK belongs to the open file: setting it on `fd` would change it for whoever
    shares it, a shell for one. So the file is opened a second time; a socket can't be, and
    is written with MSG_DONTWAIT instead.
    """
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return os.dup(fd)
    try:
        return os.open(f"/proc/self/fd/{fd}", FLAGS)
    except OSError:
        # Another user's pipe or terminal: then a stalled reader does stall us.
        return os.dup(fd)


def open_file(path: str) -> int:
    """Open a log file, or make it; a link in its place is not followed: root would write where it leads."""
    fd = os.open(path, FLAGS | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is no regular file")
    return fd


def open_syslog(path: str) -> int:
    """Connect to the socket of a syslog daemon: one datagram a line, and none waits."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock.detach()

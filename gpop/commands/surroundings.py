"""
EDGE: who has started gpop, and what they have given it: systemd's sockets, inetd's connection.

What is found is handed to the broker as plain values, and is in no environment afterwards: neither
another process of gpop's nor a session learns of it.

Executed by `gpop serve` and `gpop inetd`, as root, before there is a broker. It looks at descriptors
and never reads from one.
"""

from __future__ import annotations

import os
import socket
import syslog
from typing import Any

FIRST_DESCRIPTOR = 3  # sd_listen_fds(3)
PLAIN_NAMES = ("plain", "pop3")
TLS_NAMES = ("tls", "pop3s")
NO_NAME = ("", "unknown")  # as systemd calls what has none


class Unusable(Exception):
    """What gpop was given is not what it can serve; the text says why."""


def nothing() -> dict[str, Any]:
    """The surroundings of a gpop that was started by nobody in particular."""
    return {
        "notify_socket": "",
        "watchdog_s": 0.0,
        "sockets": [],
        "one_connection": False,
        "unheard": False,  # nobody reads what is written to standard output and standard error
    }


def of_service_manager() -> dict[str, Any]:
    """
    Return what systemd, or who does as it does, has said in the environment.

    Raises:
        Unusable: a descriptor is no listening TCP socket, or its name does not say what is spoken there.
    """
    environment = os.environ
    notify_socket = environment.get("NOTIFY_SOCKET", "")
    watchdog_us = environment.get("WATCHDOG_USEC", "")
    watchdog_is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return nothing() | {
        "notify_socket": notify_socket if notify_socket[:1] in ("/", "@") else "",
        "watchdog_s": int(watchdog_us) / 1e6 if watchdog_us.isdigit() and watchdog_is_ours else 0.0,
        "sockets": _listening_sockets(),
    }


def _listening_sockets() -> list[tuple[int, bool]]:
    """The sockets that were opened for us: descriptor, whether TLS begins at once."""
    count = os.environ.get("LISTEN_FDS", "")
    if not count.isdigit() or os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for number in range(int(count)):
        fd = FIRST_DESCRIPTOR + number
        name = names[number] if number < len(names) else ""
        sock = _tcp_socket(fd, f"descriptor {fd} of LISTEN_FDS")
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        sock.detach()
        if not listens:
            raise Unusable(f"descriptor {fd} of LISTEN_FDS does not listen: expected Accept=no")
        if name not in (*PLAIN_NAMES, *TLS_NAMES, *NO_NAME):
            raise Unusable(
                f'descriptor {fd} of LISTEN_FDS is called "{name}": expected FileDescriptorName=plain, '
                "or =tls where TLS begins at once"
            )
        found.append((fd, name in TLS_NAMES))
    return found


def _tcp_socket(fd: int, what: str) -> socket.socket:
    """
    Return a socket object of a descriptor, which stays the caller's: `detach` it.

    Raises:
        Unusable: it is no TCP socket.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise Unusable(f"{what} is no socket: {error.strerror}") from error
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise Unusable(f"{what} is no TCP socket")
    return sock


def of_inetd(tls: bool, log_path: str | None) -> dict[str, Any]:
    """
    Take the connection on descriptor 0, and see to it that nothing but POP3 is ever written to it.

    From here on standard output and standard error are the file at `log_path`, or else what standard
    error was, if that was not the connection: then they are /dev/null, and "unheard". So is descriptor 0.

    Raises:
        Unusable: there is no connection, or the file can't be opened.
    """
    to_client = _is_same(2, 0)
    if to_client:
        _forget(2)
    _tcp_socket(0, "descriptor 0").detach()
    connection = os.dup(0)
    if log_path is not None:
        try:
            log_fd = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY, 0o640)
        except OSError as error:
            raise Unusable(f"--log {log_path}: {error.strerror}") from error
        os.dup2(log_fd, 2)
        os.close(log_fd)
    os.dup2(2, 1)
    _forget(0)
    os.set_inheritable(connection, True)
    return nothing() | {
        "sockets": [(connection, tls)],
        "one_connection": True,
        "unheard": to_client and log_path is None,
    }


def complain(problem: str) -> None:
    """Say to the administrator, by way of syslog, why a connection was not served; nobody else listens."""
    syslog.openlog("gpop", syslog.LOG_PID, syslog.LOG_MAIL)
    syslog.syslog(syslog.LOG_ERR, problem)


def _is_same(fd: int, other: int) -> bool:
    """Whether two descriptors are of one file; a closed one is like no other."""
    try:
        return os.path.sameopenfile(fd, other)
    except OSError:
        return False


def _forget(fd: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)

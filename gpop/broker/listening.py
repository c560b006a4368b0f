"""
EDGE: listening sockets. Executed by the broker, as root, before anybody can connect.

What is set on a listening socket holds for every connection that is accepted from it, in
whichever process: nobody sets it again.
"""

from __future__ import annotations

import _socket
import os

from gpop.broker.starting import StartFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# The sockets listened on, by (address, whether TLS begins at once).
Listening = dict[tuple[str, bool], _socket.socket]

# Who finds the queue full tries again after 1, 3, 7, 15 s: it is better to wait in it.
# Linux takes no more than net.core.somaxconn, which is 4,096.
LISTEN_BACKLOG = 4096
# Peers that vanished without a word are found by the kernel: 2 minutes' silence, then 3 probes.
KEEPALIVE = {_socket.TCP_KEEPIDLE: 120, _socket.TCP_KEEPINTVL: 20, _socket.TCP_KEEPCNT: 3}


def listen_on(settings: dict[str, Any], already: Listening) -> Listening:
    """
    Return a listening socket for each address of `settings`; those that are there `already` are kept.

    Raises:
        StartFailed: an address can't be listened on; nothing is listened on that was not before.
    """
    sockets: Listening = {}
    wanted = [(address, False) for address in settings["listen"]]
    for address, tls in [*wanted, *((address, True) for address in settings["listen_tls"])]:
        try:
            sockets[address, tls] = already.get((address, tls)) or listening_socket(address)
        except OSError as error:
            for new in sockets.keys() - already.keys():
                sockets[new].close()
            setting = "server.listen_tls" if tls else "server.listen"
            raise StartFailed(f"{setting}: {address}: {error.strerror}") from error
    return sockets


def listening_socket(address: str) -> _socket.socket:
    """Return a socket that listens on "HOST:PORT" or "[HOST]:PORT"; what is accepted inherits its options."""
    host, _, port = address.rpartition(":")
    family = _socket.AF_INET6 if host.startswith("[") else _socket.AF_INET
    sock = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if family == _socket.AF_INET6:
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        _set_options(sock)
        sock.bind((host.strip("[]"), int(port)))
        sock.listen(LISTEN_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def inherited_sockets(descriptors: Iterable[tuple[int, bool]]) -> Listening:
    """
    Return the sockets that others have opened for us: (descriptor, whether TLS begins at once).

    `launch` has checked what they are. One that does not listen is a connection.
    """
    sockets: Listening = {}
    for fd, tls in descriptors:
        os.set_inheritable(fd, False)
        sock = _socket.socket(fileno=fd)
        _set_options(sock)
        # A session waits in blocking calls on its connection; a front never on a listening socket.
        sock.setblocking(not sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))
        sockets[spelled(sock), tls] = sock
    return sockets


def _set_options(sock: _socket.socket) -> None:
    # A multi-line response ends with a short segment; Nagle would hold it back for 40 ms.
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        sock.setsockopt(_socket.IPPROTO_TCP, option, value)


def spelled(sock: _socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

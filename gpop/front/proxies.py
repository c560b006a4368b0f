"""
PROCESS (part of the front): the balancers in front of it, and the PROXY headers that they send.

At an address of server.proxy_listen every connection begins with one, before the greeting and
before TLS; it is read exactly, and what follows it is left in the socket, for whoever reads next. Nobody
but a trusted sender has an octet read.
"""

from __future__ import annotations

import _socket
import time
from typing import TYPE_CHECKING, Any

from gpop.front.proxy_header import MAX_HEADER_OCTETS, BadHeader, Header, end_of, parse

if TYPE_CHECKING:
    from gpop.front.connection import Connection

# Lines about refused connections in limits.LINE_EVERY_S; the next line says how many were left out.
# One misconfigured balancer makes thousands, and a stranger may try to fill a disk.
MAX_REFUSAL_LINES = 10


def header_of(connection: Connection) -> Header | None:
    """
    Return the header with which a connection begins; None, after one line in the log, if it gets no further.

    Raises:
        OSError: the peer has gone.
    """
    refused: dict[str, Any]
    if connection.peer[0] not in connection.front.proxies:
        refused = {"reason": "untrusted"}
    else:
        try:
            return _read(connection)
        except TimeoutError:
            refused = {"reason": "timeout"}
        except BadHeader as error:
            refused = {"reason": "malformed", "detail": str(error)}
    unlogged = connection.front.refusal_lines.next(time.monotonic())
    if unlogged:
        refused["unlogged"] = unlogged
    if unlogged is not None:
        connection.log("proxy_refused", "warning", **refused)
    return None


def _read(connection: Connection) -> Header:
    """
    Read a header, and not one octet more.

    What is there is looked at first: until it holds the header's end, all of it belongs to the header.

    Raises:
        TimeoutError: it was not there in time.
        BadHeader, OSError: as `header_of` says.
    """
    hub, client = connection.front.hub, connection.client
    timer = hub.loop.timer(connection.front.settings.proxy_timeout_s)
    timer.start(connection.greenlet.throw, TimeoutError)
    octets = b""
    try:
        while True:
            hub.wait(connection.transport.readable)
            try:
                there = client.recv(MAX_HEADER_OCTETS - len(octets), _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            if not there:
                raise ConnectionResetError
            end = end_of(octets + there)
            belonging = len(there) if end is None else end - len(octets)
            octets += client.recv(belonging, _socket.MSG_DONTWAIT)
            if end is not None:
                return parse(octets)
    finally:
        timer.close()

"""
EDGE: frames and descriptors over a unix socket (SOCK_SEQPACKET: one frame, one message).

Works on whichever socket it is handed: a cooperative one in the front, a plain one
elsewhere. Plain ones are those of `_socket`, which `socket` wraps: the wrapper turns numbers
into enum members, and a session would pay more for that than for its lock.

It owns what it receives until it returns it: descriptors that came with a bad frame are
closed here, so no error path of a caller can leak one. Whether too many were sent, or this process
has none free for them, it tells apart: the first is the sender's fault, the second nobody's.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time

from gpop.privsep import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from gpop.privsep.messages import Frame

DESCRIPTOR_OCTETS = 4
LOGIN_DESCRIPTORS = struct.Struct("2i")
MOST_DESCRIPTORS = 3  # as many as any frame carries
# There is room for as many as a message can bring (SCM_MAX_FD), and for its sender's credentials: what there
# is no room for the kernel closes itself, and waits for (see `close_all`).
ANCILLARY_OCTETS = _socket.CMSG_SPACE(253 * DESCRIPTOR_OCTETS) + _socket.CMSG_SPACE(struct.calcsize("3i"))
LAST_ACK_AT = 56  # linux/tcp.h: where tcpi_last_ack_recv is in struct tcp_info, in milliseconds
NO_LINGER = struct.pack("ii", 0, 0)
# So often, and so long, it is waited for memory of the kernel's: a second in all.
MOST_WAITS, WAIT_S = 100, 0.01


class ChannelClosed(Exception):
    """The other end is gone: an orderly end of the conversation."""


class ShortOfDescriptors(Exception):
    """
    This process had no descriptor free for one that came with a frame; its sender has done nothing wrong.

    `octets` are the frame's. What came with it has been closed, all of it.
    """

    def __init__(self, octets: bytes) -> None:
        super().__init__("no descriptor is free")
        self.octets = octets


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Return two connected ends of a new channel, close-on-exec."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def send(sock: _socket.socket, octets: bytes, fds: Sequence[int] = ()) -> None:
    """
    Send one encoded frame, with copies of `fds`; the caller keeps its own.

    Raises:
        OSError: the other end is gone (EPIPE), or the socket is full and non-blocking (EAGAIN).
    """
    if fds:
        rights = struct.pack(f"{len(fds)}i", *fds)
        sock.sendmsg([octets], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)], _socket.MSG_NOSIGNAL)
    else:
        sock.send(octets, _socket.MSG_NOSIGNAL)


def send_at_once(fd: int, octets: bytes) -> bool:
    """
    Send one encoded frame on the descriptor of a channel that others hold too; False if it can't be at once.

    O_NONBLOCK belongs to the open file: it is asked for in the call, and the flags stay as they are.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
    try:
        sock.send(octets, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
    except OSError:
        return False
    finally:
        sock.detach()
    return True


def receive(sock: _socket.socket, most: int = messages.MAX_FRAME_OCTETS) -> tuple[Frame, list[int]]:
    """
    Return the next frame, of at most `most` octets, and its descriptors, now the caller's.

    Raises:
        ChannelClosed, ShortOfDescriptors, BadFrame: as `receive_octets`; or the octets are no frame,
            or it did not come with exactly the descriptors of its kind.
    """
    try:
        octets, fds = receive_octets(sock, most)
    except ShortOfDescriptors as short:
        frame = messages.decode(short.octets)
        if messages.FRAMES[frame.kind].descriptors:
            raise
        raise messages.BadFrame(f"{frame!r} with descriptors, takes none") from None
    try:
        frame = messages.decode(octets)
        expected = messages.FRAMES[frame.kind].descriptors
        if len(fds) != expected:
            raise messages.BadFrame(f"{frame!r} with {len(fds)} descriptors, takes {expected}")
    except messages.BadFrame:
        close_all(fds)
        raise
    return frame, fds


def receive_octets(sock: _socket.socket, most: int) -> tuple[bytes, list[int]]:
    """
    Return the octets of the next frame, not decoded, and its descriptors, now the caller's.

    Raises:
        ChannelClosed: the other end closed, nothing is left to read.
        BadFrame: it was cut short, or there were more descriptors than any frame has.
        ShortOfDescriptors: see there.
    """
    try:
        octets, ancillary, flags, _ = sock.recvmsg(most, ANCILLARY_OCTETS, _socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        octets, ancillary, flags, _ = _receive_again(sock, most, error)
    fds = _descriptors(ancillary)
    if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC) or len(fds) > MOST_DESCRIPTORS:
        close_all(fds)
        if flags & _socket.MSG_TRUNC:
            raise messages.BadFrame("the frame was cut short")
        if len(fds) > MOST_DESCRIPTORS:
            raise messages.BadFrame(f"more than {MOST_DESCRIPTORS} descriptors")
        raise ShortOfDescriptors(octets)
    if not octets and not fds:
        raise ChannelClosed
    return octets, fds


def _receive_again(sock: _socket.socket, most: int, error: OSError) -> tuple[bytes, list[Any], int, Any]:
    """
    Receive after `error`, where the frame is still there: nothing is lost by asking again.

    ECONNRESET: the other end was closed with frames in it that it had not read; what it sent before
    is behind this error, which is reported once. ENOMEM, ENOBUFS: the kernel has no memory now; whoever
    took that for the end of the conversation would end logins, sessions inside TLS, or gpop.

    Raises:
        OSError: another one, or the kernel had no memory all the time.
    """
    for _ in range(MOST_WAITS):
        if error.errno in (errno.ENOMEM, errno.ENOBUFS):
            time.sleep(WAIT_S)
        elif error.errno != errno.ECONNRESET:
            raise error
        try:
            return sock.recvmsg(most, ANCILLARY_OCTETS, _socket.MSG_CMSG_CLOEXEC)
        except OSError as another:
            error = another
    raise error


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, octets in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            if len(octets) == LOGIN_DESCRIPTORS.size:
                fds += LOGIN_DESCRIPTORS.unpack(octets)
            else:
                usable = len(octets) - len(octets) % DESCRIPTOR_OCTETS
                fds += struct.unpack(f"{usable // DESCRIPTOR_OCTETS}i", octets[:usable])
    return fds


def close_all(fds: Sequence[int]) -> None:
    """
    Close every one of `fds`, whatever it is that somebody has sent, without waiting: see `close_stream`.

    What lies unread in a unix socket is closed with it, so that comes first, the streams there among it.
    """
    left = [*fds]
    while left:
        unread = _unread_descriptors(left[-1])
        if unread:
            left += unread
        else:
            close_stream(left.pop())


def discard_unread(fd: int) -> None:
    """Close all descriptors that lie unread in a unix socket, as `close_all` does; no more can come."""
    while unread := _unread_descriptors(fd):
        close_all(unread)


def _unread_descriptors(fd: int) -> list[int]:
    """Take the next message with descriptors out of a unix socket; returns these, none if there is none."""
    try:
        sock = _socket.socket(fileno=fd)
    except OSError:
        return []  # no socket
    found: list[int] = []
    try:
        if sock.family == _socket.AF_UNIX:
            sock.shutdown(_socket.SHUT_RD)
            # A message may have no octets, as the end; with this it always brings its sender's credentials.
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
            is_end = False
            while not (found or is_end):
                flags = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
                octets, ancillary, *_ = sock.recvmsg(messages.MAX_FRAME_OCTETS, ANCILLARY_OCTETS, flags)
                found = _descriptors(ancillary)
                # A stream has no messages, and credentials even at its end.
                is_end = not octets if sock.type == _socket.SOCK_STREAM else not ancillary
    except OSError:
        return found  # nothing is there, or nothing can be
    finally:
        sock.detach()
    return found


def close_stream(fd: int) -> None:
    """
    Close a client's stream without waiting, even if this is the last copy of it.

    Whoever had it before may have set SO_LINGER, and a client that reads nothing would then
    keep a process of root's in close() for as long as they like.
    """
    try:
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fd)
    except OSError:
        os.close(fd)  # no socket at all
        return
    close_socket(sock)


def close_socket(sock: _socket.socket) -> None:
    """Close a stream, which others hold as well or have held, as `close_stream` does."""
    try:
        # Asked for first: Python makes and drops two errors on its way to an option of octets.
        if sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER):
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, NO_LINGER)
    except OSError:
        return  # it is closed all the same, and nobody ends for it
    finally:
        sock.close()


def set_autologout(sock: _socket.socket, seconds: float) -> None:
    """
    Give a socket, and what will be accepted from it, the autologout timer of RFC 1939 §3.

    It is the kernel's time-out of blocking calls, in both directions: the session's. To set it there would
    cost each session a dozen copied pages, for errors that Python makes and drops on the way.
    """
    whole = int(seconds)
    timeout = struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, timeout)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeout)


def seconds_unacknowledged(sock: _socket.socket) -> float:
    """
    Seconds since the kernel of a TCP client has last acknowledged anything.

    Raises:
        OSError: it is no socket of TCP.
    """
    info = sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_INFO, LAST_ACK_AT + 4)
    milliseconds: int = struct.unpack_from("I", info, LAST_ACK_AT)[0]
    return milliseconds / 1000


def check_login_descriptors(stream: int, channel: int, relayed: int = -1) -> None:
    """
    Refuse what is not a client's stream, or a session's end of a relay, and one end of a session channel.

    With a relay, `relayed` is the client's stream.

    A front that was taken over may send any descriptor it holds; by its type alone this
    can be no file, no listening socket and no socket of another kind.

    Raises:
        BadFrame: a descriptor is of another type.
    """
    domains = (_socket.AF_INET, _socket.AF_INET6, _socket.AF_UNIX)
    _check_socket(stream, domains if relayed < 0 else domains[2:], _socket.SOCK_STREAM)
    _check_socket(channel, (_socket.AF_UNIX,), _socket.SOCK_SEQPACKET)
    if relayed >= 0:
        _check_socket(relayed, domains, _socket.SOCK_STREAM)


def _check_socket(fd: int, domains: tuple[int, ...], kind: int) -> None:
    try:
        # With no family and type given, Python asks the kernel for both.
        sock = _socket.socket(fileno=fd)
    except OSError:
        raise messages.BadFrame("a descriptor is no socket") from None
    try:
        fits = sock.family in domains and sock.type == kind
        listens = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN)
    finally:
        sock.detach()
    if not fits or listens:
        raise messages.BadFrame("a descriptor is a socket of the wrong kind")

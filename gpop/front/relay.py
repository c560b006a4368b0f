"""
PROCESS (part of the front): between a peer inside TLS and its session, which knows nothing of TLS.

    peer ══TLS══ front ══socket pair══ session

A relay moves octets in turns of the event loop, a bounded piece in each, and has no greenlet: what it
does never waits. Each way has one piece under way; while that is not taken nothing more is read for it,
so that a slow peer slows down its session, and a session that is busy its peer.

Each way ends by itself. The peer's end half-closes the session's stream, be it in order (close_notify) or
TCP's alone: nothing is ever removed but for a QUIT, so there is nothing to be gained by cutting a stream off.
The session's end becomes close_notify and a half-close of TCP. The relay has ended when both ways have, or
one broke.
"""

from __future__ import annotations

import _socket
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

from gevent.event import Event

from gpop.front.transport import READABLE, SEND_FLAGS, WRITABLE, TlsTransport
from gpop.privsep import channel

if TYPE_CHECKING:
    from collections.abc import Callable

# What is taken from the session at a time: two records of TLS. OpenSSL keeps memory for the longest piece as
# long as the connection lives.
PIECE_OCTETS = 32768
# After so many the others have their turn.
PIECES_IN_A_ROW = 4
# Behind an answer as short as this the end may be lying already, and goes along in the same packet.
SHORT_OCTETS = 512
# What is taken from the peer at a time; commands are short.
COMMAND_OCTETS = 4096
# A session that has said goodbye waits 2 s for its client's end, see `session.stream`.
GOODBYE_S = 2.5
# A peer that takes nothing is looked at so often; one whose kernel has not even acknowledged anything for
# as long as the kernel gives a silent one (`broker.listening`) has left the network. One that only does not
# read acknowledges a probe every 2 minutes at least.
LOOK_S = 20.0
GONE_S = 180.0
# Beyond this the kernel takes nothing for a peer that does not read: what it has taken, the session
# believes to be with the peer (its autologout timer).
NOTSENT_LOWAT = 131072
TCP_NOTSENT_LOWAT = 25  # linux/tcp.h

# One for all relays: nothing stays in it from one turn to the next.
_piece = memoryview(bytearray(PIECE_OCTETS))


class Relay:
    """
    One peer and its session.

    `autologout_s`: the session's. `fault` is called with an error of our own.
    """

    __slots__ = (
        "_ended",
        "_fault",
        "_hub",
        "_peer_ended",
        "_session",
        "_session_ended",
        "_stall_s",
        "_stalled_s",
        "_timer",
        "_to_peer",
        "_to_session",
        "_transport",
        "_watchers",
    )

    def __init__(
        self,
        transport: TlsTransport,
        session: _socket.socket,
        autologout_s: float,
        fault: Callable[[Exception], None],
    ) -> None:
        self._transport = transport
        self._session = session
        # A peer that takes nothing for so long is gone. The session is to find out before that, and say why:
        # a write that was taken in part, one that was not, and a second look are three times its timer.
        self._stall_s = 4 * autologout_s + GOODBYE_S
        self._stalled_s = 0.0
        self._fault = fault
        self._hub = transport.hub
        self._ended = Event()
        self._peer_ended = self._session_ended = False
        # Octets that could not be passed on yet; encrypted already on the way to the peer.
        self._to_peer: bytes | memoryview = b""
        self._to_session: bytes | memoryview = b""
        self._timer: Any = None
        self._watchers: dict[tuple[int, int], Any] = {}

    def start(self) -> None:
        """Begin. What the transport has read and not used yet goes first."""
        with contextlib.suppress(OSError):
            self._transport.sock.setsockopt(_socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
        self._turn(self._peer_said)
        self._turn(self._session_readable)

    def wait(self) -> None:
        """Wait, as a greenlet, until both ways have ended."""
        self._ended.wait()

    def _turn(self, step: Callable[[], None]) -> None:
        """Do one thing that is due, and see what is to be waited for next: the one outermost handler."""
        if self._ended.is_set():
            return
        try:
            step()
            self._look()
        except OSError:
            self._end()  # one of them is gone, or speaks no TLS; the other sees the end of its stream
        except Exception as error:
            self._fault(error)
            self._end()

    def _look(self) -> None:
        """Wait for what may come next."""
        if self._session_ended and self._peer_ended and not self._to_peer:
            self._end()
            return
        peer, session = self._transport.sock.fileno(), self._session.fileno()
        # OpenSSL answers some of what a peer says by itself (new keys): who never reads gets no more of it.
        hear = not (self._to_session or self._peer_ended or self._transport.outgoing.pending > PIECE_OCTETS)
        self._watch(peer, READABLE, hear, self._peer_readable)
        self._watch(session, READABLE, not self._to_peer and not self._session_ended, self._session_readable)
        self._watch(peer, WRITABLE, bool(self._to_peer), self._peer_writable)
        self._watch(session, WRITABLE, bool(self._to_session), self._session_writable)

    def _watch(self, fd: int, event: int, wanted: bool, step: Callable[[], None]) -> None:
        watcher = self._watchers.get((fd, event))
        if wanted and watcher is None:
            self._watchers[fd, event] = watcher = self._hub.loop.io(fd, event)
            watcher.start(self._turn, step)
        elif watcher is not None and not wanted:
            del self._watchers[fd, event]
            watcher.close()

    def _end(self) -> None:
        for watcher in self._watchers.values():
            watcher.close()
        self._watchers.clear()
        self._stop_timer()
        with contextlib.suppress(OSError):
            # Its descriptor is closed when the session has said its last word; the session is to end now.
            self._session.shutdown(_socket.SHUT_RDWR)
        self._ended.set()

    def _start_timer(self, seconds: float, step: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._hub.loop.timer(seconds)
        self._timer.start(step)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _watch_stalled(self) -> None:
        self._start_timer(min(LOOK_S, self._stall_s), self._still_stalled)

    def _still_stalled(self) -> None:
        """The peer takes nothing: it is slow, it has stopped reading for long enough, or it is gone."""
        self._stalled_s += LOOK_S
        try:
            gone = channel.seconds_unacknowledged(self._transport.sock) >= GONE_S
        except OSError:
            gone = True
        if gone or self._stalled_s >= self._stall_s:
            self._end()
        else:
            self._watch_stalled()

    # From the peer to the session

    def _peer_readable(self) -> None:
        try:
            octets = self._transport.sock.recv(COMMAND_OCTETS, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not octets:
            self._peer_ended = True
        elif self._session_ended:
            return  # nobody is left to hear it, but what is never read makes a reset of the close
        else:
            self._transport.incoming.write(octets)
        self._peer_said()

    def _peer_said(self) -> None:
        """Pass on what the peer has said."""
        transport, parts = self._transport, []
        if not self._session_ended:
            try:
                while transport.has_more():
                    parts.append(transport.tls.read(COMMAND_OCTETS))
                    if not parts[-1]:  # close_notify
                        self._peer_ended = True
                        break
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                self._peer_ended = True
            if transport.outgoing.pending and not self._to_peer:
                self._send_to_peer()
        self._to_session = b"".join(parts)
        self._session_writable()

    def _session_writable(self) -> None:
        try:
            while self._to_session:
                sent = self._session.send(self._to_session, SEND_FLAGS)
                self._to_session = memoryview(self._to_session)[sent:]
        except BlockingIOError:
            return
        except OSError:
            # It ends, or has to: with a piece missing between two others, two commands could become one that
            # nobody has given. What it has said is still to be passed on.
            self._to_session = b""
            self._end_to_session()
        if self._peer_ended:
            self._end_to_session()

    def _end_to_session(self) -> None:
        """Say no more to the session; it ends for that."""
        with contextlib.suppress(OSError):
            self._session.shutdown(_socket.SHUT_WR)

    # From the session to the peer

    def _session_readable(self) -> None:
        for _ in range(PIECES_IN_A_ROW):
            try:
                count = self._session.recv_into(_piece, PIECE_OCTETS, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                count = 0  # it was closed with something in it that it had not read
            if count:
                self._transport.encrypt(_piece[:count])
                if count <= SHORT_OCTETS:
                    continue
            else:
                self._session_ended = True
                self._transport.end_tls()
            self._send_to_peer()
            if count < PIECE_OCTETS or self._to_peer:
                return
        if self._transport.outgoing.pending:
            self._send_to_peer()

    def _send_to_peer(self) -> None:
        self._to_peer = self._transport.outgoing.read()
        self._peer_writable()

    def _peer_writable(self) -> None:
        try:
            while self._to_peer:
                sent = self._transport.sock.send(self._to_peer, SEND_FLAGS)
                self._to_peer = memoryview(self._to_peer)[sent:]
        except BlockingIOError:
            self._stalled_s = 0.0
            self._watch_stalled()
            return
        self._to_peer = b""
        self._stop_timer()
        if self._transport.outgoing.pending:
            self._send_to_peer()
        elif self._session_ended and not self._peer_ended:
            self._transport.sock.shutdown(_socket.SHUT_WR)
            self._start_timer(GOODBYE_S, self._end)

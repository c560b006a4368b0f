"""
EDGE: the broker's socket for administrators: which sessions run, and an end to those of one account.

Only root, and the user as whom gpop runs, may connect; one request a connection, answered at once. The
broker writes down frames as it got them, and takes none apart but to find the sessions to end.

Executed by the broker, as root.
"""

from __future__ import annotations

import _socket
import os
import struct

from gpop import signals
from gpop.privsep import channel, messages
from gpop.programs import memory_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gpop.events import Log

MAX_CLIENTS = 8
MAX_REQUEST_OCTETS = 2048
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred


class Control:
    """
    The control socket at `run_dir`/control.

    `running` has the sessions' SERVE frames by pid, once `reap` has taken note of those that ended;
    `watch` and `unwatch` are told which descriptors the broker's loop is to call what for.
    """

    __slots__ = ("_clients", "_log", "_reap", "_running", "_unwatch", "_watch")

    def __init__(
        self,
        log: Log,
        running: dict[int, bytes],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        reap: Callable[[], None],
    ) -> None:
        self._reap = reap
        self._log = log
        self._running = running
        self._watch = watch
        self._unwatch = unwatch
        self._clients: dict[int, _socket.socket] = {}

    def listen(self, run_dir: str) -> None:
        """
        Listen, in place of whoever has listened there before.

        Raises:
            OSError: that can't be.
        """
        path = os.path.join(run_dir, messages.CONTROL_SOCKET)
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            if os.path.lexists(path):
                os.unlink(path)
            # The broker's umask leaves it to its owner alone.
            sock.bind(path)
            sock.setblocking(False)
            sock.listen(MAX_CLIENTS)
        except BaseException:
            sock.close()
            raise
        self._watch(sock.fileno(), lambda: self._accept(sock))

    def _accept(self, listening: _socket.socket) -> None:
        try:
            fd, _ = listening._accept()  # type: ignore[attr-defined] # what socket.accept calls
        except OSError:
            return
        client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
        client.setblocking(False)
        ucred = client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, CREDENTIALS.size)
        if CREDENTIALS.unpack(ucred)[1] not in (0, os.geteuid()) or len(self._clients) >= MAX_CLIENTS:
            client.close()
            return
        self._clients[fd] = client
        self._watch(fd, lambda: self._readable(fd))

    def _readable(self, fd: int) -> None:
        """Answer a client, and hang up."""
        self._unwatch(fd)
        client = self._clients.pop(fd)
        try:
            frame, fds = channel.receive(client, MAX_REQUEST_OCTETS)
            channel.close_all(fds)  # none is of any use here
            self._answer(client, frame)
        except (channel.ChannelClosed, OSError):
            return
        except (messages.BadFrame, channel.ShortOfDescriptors) as error:
            self._log.write("frame_rejected", "error", sender="control", problem=str(error))
        finally:
            client.close()

    def _answer(self, client: _socket.socket, frame: messages.Frame) -> None:
        self._reap()
        if frame.kind == messages.LIST_SESSIONS:
            fd = self._session_list()
            try:
                count = len(self._running)
                channel.send(client, messages.encode(messages.SESSION_LIST, sessions=count), [fd])
            finally:
                os.close(fd)
        elif frame.kind == messages.KICK:
            count = self._kick(frame.fields["account"])
            channel.send(client, messages.encode(messages.KICKED, sessions=count))
        else:
            raise messages.BadFrame(f"{frame!r} is not for the control socket")

    def _session_list(self) -> int:
        """Return a descriptor of the list. In memory: nobody who reads slowly holds up the broker."""
        pack = messages.SESSION_RECORD.pack
        records = [pack(len(login), pid) + login for pid, login in self._running.items()]
        return memory_file("gpop-sessions", b"".join(records))

    def _kick(self, account: bytes) -> int:
        """Have the sessions of an account end, as with a client that vanished: nothing is removed."""
        pids = [
            pid
            for pid, login in self._running.items()
            if messages.fields_of(login, messages.SERVE)["account"] == account
        ]
        for pid in pids:
            os.kill(pid, signals.USR2)
        name = account.decode("utf-8", "backslashreplace")
        self._log.write("sessions_kicked", account=name, sessions=len(pids))
        return len(pids)

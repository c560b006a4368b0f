"""
EDGE: a login as auth has it from a front: the descriptors that came with it, and whom they lead to.

Auth holds them as long as it decides, and reads no octet of a client's stream. A front is believed in what
it says of a client only as far as the kernel says the same. Executed by auth, as root.
"""

from __future__ import annotations

import _socket
from typing import Any

from gpop.accounts.addresses import Networks, is_address, packed
from gpop.privsep import channel, messages

# Of `_socket`: those of `socket` are enum members, and putting two together takes a hundred calls.
SEND_FLAGS = _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL

GONE, UNVERIFIED, VERIFIED = range(3)  # what the kernel says of a client's address


class Login:
    """
    What an attempt carries through the decision: its frame's other fields, and the descriptors.

    Raises:
        BadFrame: the channel is no socket; the descriptors remain the caller's then. What else
            is wrong with a descriptor the session sees, which checks both before anything else.
    """

    __slots__ = ("channel", "client", "for_session", "login_id")

    def __init__(self, fields: dict[str, Any], client: int, channel_fd: int) -> None:
        self.login_id = fields["login_id"]
        # What goes from the front to the session as it is.
        self.for_session = {name: fields[name] for name in ("dialogue", "pipelined", "utf8", "language")}
        self.client = client
        # Its flags are not touched: O_NONBLOCK belongs to the open file, and a session will want to wait.
        self.channel = _socket_of(channel_fd, _socket.SOCK_SEQPACKET)

    def tell(self, octets: bytes) -> bool:
        """Send a frame to the front, without waiting for one that does not read; False if it can't be."""
        try:
            self.channel.send(octets, SEND_FLAGS)
        except OSError:
            return False
        return True

    def descriptors(self) -> tuple[int, int]:
        """Both, as a SERVE frame takes them along."""
        return self.client, self.channel.fileno()

    def end(self) -> None:
        """There is no session: close both descriptors, and what the front has put into them."""
        for fd in self.descriptors():
            channel.discard_unread(fd)
        self.close()

    def close(self) -> None:
        """Give up both descriptors, which have been sent on."""
        channel.close_stream(self.client)
        self.channel.close()


def peer_of(client: int, peer: str, spokesmen: Networks) -> int:
    """
    Check that a login comes from whom the front says.

    Penalties hang on the address: a front that was taken over must not guess in others' names.
    Behind a unix socket only the front knows; see `Attempt.peer_is_verified`. Of a stream that the
    kernel says comes from a proxy or a trusted XCLIENT host, the front is believed: nobody else
    has read for whom that one speaks, and what this costs is in docs/security.md.

    Raises:
        BadFrame: the stream comes from another address, or what it is said to come from is none.
    """
    stream = _socket_of(client, _socket.SOCK_STREAM)
    try:
        address = stream.getpeername()
    except OSError:
        return GONE
    finally:
        stream.detach()
    if not isinstance(address, tuple):
        return UNVERIFIED
    if address[0] == peer or packed(address[0]) == packed(peer):
        return VERIFIED
    if address[0] not in spokesmen:
        raise messages.BadFrame("login.peer is not the peer of the stream")
    if not is_address(peer):
        raise messages.BadFrame("login.peer is no address")
    return VERIFIED


def _socket_of(fd: int, kind: int) -> _socket.socket:
    """Return a plain socket object of `fd`; the kernel is asked whether it is a socket, not which."""
    try:
        return _socket.socket(_socket.AF_UNIX, kind, 0, fd)
    except OSError:
        raise messages.BadFrame("a descriptor is no socket") from None

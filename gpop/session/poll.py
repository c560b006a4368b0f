"""
PROCESS (part of the session): a client that only asks what is there, answered in one function.

Most sessions are this: STAT, UIDL or LIST, QUIT, on a maildrop that has not changed. Every
function called and every object made costs such a session a copied page, so here is one
function for all of them. Whatever else a client says is left to `conversation`, the long
way, which answers these commands with the same octets (tests/processes/test_poll.py).
Executed by the session, as the mail user.
"""

from __future__ import annotations

from gpop.maildrop.statcache import HEADER_OCTETS
from gpop.session.stream import SMALL_OCTETS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpop.maildrop.hit import Hit
    from gpop.session.stream import Stream

# A longer response goes from the file to the client: nobody copies it, and no memory is asked for.
MAX_BATCHED_OCTETS = 8192
# Longer than any command that is answered here.
MAX_UNREAD_OCTETS = 255


def answer(stream: Stream, hit: Hit, unread: bytes) -> bytes | None:
    """
    Answer STAT, LIST, UIDL and NOOP until QUIT has been received: then None. It is not answered yet.

    Or until anything else comes: then what has not been answered, that first.

    Raises:
        SessionEnd: the client left, or was silent for too long.
        OSError: the statcache became shorter while it was in use.
    """
    count, octets, uidl_end, list_end, body, fd = hit
    while True:
        line, newline, rest = unread.partition(b"\n")
        if not newline:
            if len(unread) >= MAX_UNREAD_OCTETS:
                return unread
            unread += stream.receive(SMALL_OCTETS)
            continue
        command = line.removesuffix(b"\r")
        if command == b"STAT":
            stream.send(b"+OK %d %d\r\n" % (count, octets))
        elif command == b"UIDL" or command == b"LIST":
            start, end = (HEADER_OCTETS, uidl_end) if command == b"UIDL" else (uidl_end, list_end)
            if body and end - start <= MAX_BATCHED_OCTETS:
                stream.send(body[start - HEADER_OCTETS : end - HEADER_OCTETS])
            else:
                stream.send_file(fd, start, end - start)
        elif command == b"NOOP":
            stream.send(b"+OK\r\n")
        elif command == b"QUIT":
            return None
        else:
            return unread
        unread = rest

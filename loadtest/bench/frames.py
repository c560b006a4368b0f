"""
What a login's frames cost: encoding, decoding, and the way over a socket with two descriptors.

Run from the top of the tree: `python -m loadtest.bench.frames`. Microseconds of CPU time, best of the rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from gpop.privsep import channel, messages

ROUNDS = 7
REPEAT = 2000

LOGIN = messages.encode(
    messages.LOGIN,
    login_id=1 << 50,
    name=b"somebody@example.org",
    password=b"open sesame",
    mechanism="USER",
    peer="192.0.2.77",
    peer_port=50000,
    local="192.0.2.1",
    local_port=110,
    received_ms=1 << 30,
    dialogue=0,
    pipelined=0,
    prepared_name=b"",
    prepared_password=b"",
    utf8=0,
    language="",
)
SERVE = messages.encode(
    messages.SERVE,
    uid=70000,
    maildir=b"/srv/mail/example.org/somebody/Maildir",
    login_id=1 << 50,
    account=b"somebody@example.org",
    gid=70000,
    groups=[],
    home=b"/srv/mail/example.org/somebody",
    peer="192.0.2.77",
    received_ms=123456,
    removal="",
    dialogue=0,
    pipelined=0,
    utf8=0,
    language="",
)


def microseconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    least = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(REPEAT):
            function()
        least = min(least, time.process_time() - started)
    return least / REPEAT * 1e6


def run() -> dict[str, float]:
    """Microseconds by what was measured."""
    login, serve = messages.decode(LOGIN).fields, messages.decode(SERVE).fields
    assert messages.encode(messages.LOGIN, **login) == LOGIN
    assert messages.encode(messages.SERVE, **serve) == SERVE
    ours, theirs = channel.pair()
    fds = (os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY))

    def pair() -> None:
        for end in channel.pair():
            end.close()

    def round_trip() -> None:
        channel.send(ours, SERVE, fds)
        octets, received = channel.receive_octets(theirs, 16384)
        assert octets == SERVE
        channel.close_all(received)

    try:
        return {
            "encode LOGIN": microseconds(lambda: messages.encode(messages.LOGIN, **login)),
            "decode LOGIN": microseconds(lambda: messages.decode(LOGIN)),
            "encode SERVE": microseconds(lambda: messages.encode(messages.SERVE, **serve)),
            "decode SERVE": microseconds(lambda: messages.decode(SERVE)),
            "maildrop_key of SERVE": microseconds(lambda: messages.maildrop_key(SERVE)),
            "channel: pair and close": microseconds(pair),
            "channel: SERVE there, 2 descriptors": microseconds(round_trip),
        }
    finally:
        channel.close_all(fds)
        for end in (ours, theirs):
            end.close()


def main() -> None:
    for what, figure in run().items():
        print(f"{what:<40} {figure:8.2f} µs")


if __name__ == "__main__":
    main()

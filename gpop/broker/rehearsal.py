"""
Plays a few sessions through in the broker, before the first fork, on a maildrop of its own.

A fork shares the broker's memory until somebody writes to it. CPython writes while it
runs: it specialises code, fills caches of look-ups, takes memory from pools that are not
open yet. Whatever it does here once, no session does again: some 60 of 470 page faults in
a poll. It also loads what is only loaded on first use, while loading is still possible.

Executed by the broker, on files that only the broker can reach.
"""

from __future__ import annotations

import _socket
import os

from gpop import signals
from gpop.privsep import channel, credentials, messages
from gpop.session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gpop.config import SessionSettings
    from gpop.maildrop.opening import Options
    from gpop.privsep.confinement import Confinement

# CPython 3.11 specialises a function in its eighth run and may change its mind once or twice.
POLLS = 24
# What few clients send comes first, so that the last thing done is the poll.
FULL_SESSION = (
    b"CAPA\r\nSTAT\r\nLIST\r\nLIST 1\r\nUIDL 1\r\nTOP 1 0\r\nRETR 1\r\nNOOP\r\nDELE 1\r\nRSET\r\nXYZZY\r\n"
)
POLL = b"STAT\r\nUIDL\r\nQUIT\r\n"
MESSAGE = b"Subject: rehearsal\n\nA line.\n.A line with a dot.\n"


def rehearse(folder: str, settings: SessionSettings, options: Options, confinement: Confinement) -> None:
    """
    Play sessions on a Maildir made in `folder`, which is removed again.

    Raises:
        OSError: the Maildir can't be made; then nothing was rehearsed, and all works the same.
    """
    maildir = os.path.join(folder, f"rehearsal-{os.getpid()}")
    # Not within `try`: what stands there already is not ours, and must not be removed.
    os.mkdir(maildir, 0o700)
    # A session has its own answers to signals; those that come meanwhile are for the broker.
    actions = signals.hold()
    wakeup_fd = signals.set_wakeup_fd(-1)
    try:
        for name in ("new", "cur"):
            os.mkdir(os.path.join(maildir, name), 0o700)
        for name in ("new/1.M1.rehearsal", "cur/2.M2.rehearsal:2,S"):
            _deliver(maildir, name)
        for number in range(POLLS):
            if number % 2 == 0:  # new mail, so that a refresh is rehearsed as well
                _deliver(maildir, f"new/{number + 3}.M{number + 3}.rehearsal")
            _play(maildir, FULL_SESSION + POLL, settings, options, confinement)
        for _ in range(POLLS):
            _play(maildir, POLL, settings, options, confinement)
    finally:
        signals.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
        signals.release(actions)
        _remove(maildir)


def _deliver(maildir: str, name: str) -> None:
    with open(os.path.join(maildir, name), "wb") as file:
        file.write(MESSAGE)


def _play(
    maildir: str, script: bytes, settings: SessionSettings, options: Options, confinement: Confinement
) -> None:
    """Play one session with a client that has sent everything already."""
    client, stream = _socket.socketpair()
    ours, theirs = channel.pair()
    home = os.fsencode(maildir)
    login = messages.encode(
        messages.SERVE,
        uid=os.geteuid(),
        maildir=home,
        login_id=0,
        account=b"",
        gid=os.getegid(),
        groups=[],
        home=home,
        peer="",
        received_ms=0,
        removal="",
        dialogue=0,
        pipelined=int(script != POLL),
        utf8=0,
        language="",
    )
    try:
        client.send(script)
        client.shutdown(_socket.SHUT_WR)
        if script != POLL:
            channel.send(ours, messages.encode(messages.PIPELINED, octets=b""))
        session.run(
            login,
            stream.detach(),
            theirs.detach(),
            settings,
            options,
            confinement.rehearse,
            _enter,
            _omit,
            _omit,
        )
        for _ in range(2):
            channel.receive(ours)
    finally:
        for sock in (client, stream, ours, theirs):
            sock.close()


def _enter(login: dict[str, Any], settings: SessionSettings) -> int:
    """As `session.enter`, but for what can't be taken back."""
    if os.geteuid() != 0:
        return session.enter(login, settings)
    return credentials.rehearse_becoming_user(
        login["uid"],
        login["gid"],
        login["groups"],
        login["home"],
        login["maildir"],
        settings.jail,
        (settings.first_valid_uid, settings.first_valid_gid),
    )


def _omit(*_arguments: int) -> None:
    """What a rehearsed session does in place of closing descriptors, and of ending its process."""


def _remove(maildir: str) -> None:
    """Remove what was made, and the statcache that came of it."""
    for name in ("new", "cur", ""):
        folder = os.path.join(maildir, name)
        if os.path.isdir(folder):
            for entry in os.listdir(folder):
                os.unlink(os.path.join(folder, entry))
            os.rmdir(folder)

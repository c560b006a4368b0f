"""
One login on its way through auth, and what is known of it so far.

A value that `deciding` moves along; it decides nothing itself, and knows neither frames nor files. Executed
by auth, as root.
"""

from __future__ import annotations

from typing import Any

from gpop.accounts.account import Accepted, Verdict

# Stages of an attempt: `deciding` has the way from one to the next.
HELD, WAITING, CHECKED, REFUSING, DONE = range(5)

# All logins whose address only a front vouches for are one source, and trusted by nobody: a front
# that was taken over could name another address for each guess.
UNVERIFIED_SOURCE = b"unverified"


class Attempt:
    """
    One login on its way. `owner` is the conversation it came by; of `carried` only auth.py knows.

    `name` is what the client sent, and what the log says. `login_name` is what that means where it was said
    (`NameRules.login_name`): everything is decided by it.

    `is_known`: this name has logged in from this source before. `peer_is_verified`: the kernel says so
    too, not only the front. `prepared`: name and password to be tried after those that were sent (see
    `sources.decide`); b"" where there is no other form.
    """

    __slots__ = (
        "arrived_s",
        "cached",
        "carried",
        "decided_s",
        "generation",
        "is_known",
        "local",
        "login_name",
        "name",
        "owner",
        "password",
        "peer",
        "peer_is_verified",
        "prepared",
        "received_s",
        "source",
        "stage",
        "trusted",
        "verdict",
        "wait_until_s",
        "was_held",
    )

    def __init__(
        self, name: bytes, password: bytes, peer: str, received_s: float, owner: object, carried: Any
    ) -> None:
        self.name = self.login_name = name
        self.password = password
        self.peer = peer
        self.received_s = received_s
        self.owner = owner
        self.carried = carried
        self.peer_is_verified = False
        self.prepared = (b"", b"")
        self.local = ""  # the address that the client connected to
        self.source = UNVERIFIED_SOURCE
        self.trusted = False
        self.arrived_s = self.decided_s = self.wait_until_s = 0.0
        self.stage = DONE
        self.is_known = False
        self.was_held = False
        self.cached: Accepted | None = None
        self.generation = 0
        self.verdict: Verdict | None = None

    def __repr__(self) -> str:
        return f"<Attempt {self.name!r} from {self.peer}>"

    def is_login(self) -> bool:
        """Whether somebody can have this name; one that no front lets through no source is asked about."""
        names = self.name + self.prepared[0]
        return bool(self.name) and not any(octet < 0x20 or octet == 0x7F for octet in names)

    def forget_password(self) -> None:
        """Keep no password longer than it is needed."""
        self.password, self.prepared = b"", (self.prepared[0], b"")

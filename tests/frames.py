"""Frames for tests, with every field that they must have."""

from __future__ import annotations

from typing import Any

from gpop.privsep import messages


def serve(**changes: Any) -> bytes:
    """A SERVE frame, as auth sends it to the broker: joe's login, but for `changes`."""
    fields: dict[str, Any] = {
        "login_id": 1,
        "account": b"joe",
        "uid": 1000,
        "gid": 1000,
        "groups": [],
        "home": b"/home/joe",
        "maildir": b"/home/joe/Maildir",
        "peer": "192.0.2.1",
        "received_ms": 0,
        "removal": "",
        "dialogue": 0,
        "pipelined": 0,
        "utf8": 0,
        "language": "",
    }
    return messages.encode(messages.SERVE, **fields | changes)

"""
Servers to move away from, real ones from Debian, and maildrops that have everything that makes moving hard.

They are started as the bench starts them (`loadtest.bench`), on the Maildirs of a `Site`, so that gpop can
serve the same files afterwards.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from loadtest.bench.accounts import Accounts
from loadtest.bench.kinds import Dovecot
from loadtest.bench.maildrops import PASSWORD, Maildrop
from loadtest.bench.servers import Server as OldServer
from tests.serving import Site

FIRST_DELIVERY = 1_600_000_000


class DovecotOfNames(Dovecot):
    """Dovecot with the format that Courier and qmail-pop3d have made popular: ids are base names."""

    settings = "pop3_uidl_format = %f"


def site_for_both(accounts: int = 1) -> Site:
    """Return a site whose accounts have the password that the old servers are given."""
    site = Site(accounts)
    site.passwd.write_text(
        "".join(
            f"{name}:{{PLAIN}}{PASSWORD}:{site.uid(name)}:{site.gid(name)}::{site.home(name)}::\n"
            for name in site.names
        )
    )
    return site


def started(kind: type[OldServer], site: Site) -> OldServer:
    """Start an old server on a site's Maildirs; whoever called this stops it."""
    folder = site.path / f"old-{kind.__name__}"
    folder.mkdir(mode=0o755)
    server = kind(kind.__name__.lower(), folder, Accounts())
    server.tree.maildrops = [Maildrop(name, site.uid(name), site.home(name), "") for name in site.names]
    server.start("proc")
    return server


def message(number: int) -> bytes:
    """Return the `number`-th message; some are alike, and some the same."""
    chance = random.Random(number)
    if number % 50 == 7:  # one mailing, sent again and again
        return b"From: list@example.org\nSubject: the same\n\nevery word\n"
    if number % 50 == 8:  # one header and one size, another content
        return b"From: cron@example.org\nSubject: nightly\n\nrun %06d\n" % number
    if number % 50 == 9:  # one header, other sizes
        return b"From: cron@example.org\nSubject: log\n\n" + b"x" * number + b"\n"
    head = b"From: a%d@example.org\nSubject: message %d\nMessage-ID: <%d@example.org>\n" % ((number,) * 3)
    body = b"".join(b"word " * chance.randrange(1, 12) + b"\n" for _ in range(chance.randrange(20)))
    odd = {
        0: b".\n..\n.dot\n",
        1: b"caf\xc3\xa9 \xe9\xff\n",
        2: b"y" * 5000 + b"\n",
        3: b"no line end",
        4: b"",
    }
    octets = head + b"\n" + body + odd.get(number % 20, b"end\n")
    return octets.replace(b"\n", b"\r\n") if number % 20 == 5 else octets


def name_of(number: int, octets: bytes, eight_bit: bool) -> tuple[str, bytes]:
    """Return folder and file name of the `number`-th message."""
    # Not always in the order of the numbers: several arrive in one second.
    delivered = FIRST_DELIVERY + number // 3
    base = b"%d.M%06dP%d.mail.example.org" % (delivered, (number * 7919) % 1_000_000, number)
    lines = octets.count(b"\n")
    wire = len(octets) if b"\r\n" in octets else len(octets) + lines
    wire += 0 if octets.endswith(b"\n") else 2
    base += {
        0: b",S=%d" % len(octets),
        1: b",S=%d,W=%d" % (len(octets), wire),
        2: b"-" + b"long" * 18,
        3: b"+odd'\"=name",
        4: "-caf\u00e9".encode() if eight_bit else b"",
    }.get(number % 6, b"")
    if number % 4 == 0:
        return "new", base
    return "cur", base + {1: b":2,", 2: b":2,S", 3: b":2,FRS"}[number % 4] * (number % 5 > 0)


def fill(site: Site, count: int, name: str = "user0", eight_bit: bool = True) -> None:
    """Fill a maildrop with `count` messages."""
    order = list(range(count))
    random.Random(count).shuffle(order)
    for number in order:
        octets = message(number)
        folder, file = name_of(number, octets, eight_bit)
        path = os.fsencode(site.maildir(name) / folder) + b"/" + file
        with open(path, "wb") as opened:
            opened.write(octets)
        os.chown(path, site.uid(name), site.gid(name))


def users_file(site: Site, path: Path) -> Path:
    """Write the list of users for `gpop uidl`."""
    path.write_text("".join(f"{name}:{PASSWORD}\n" for name in site.names))
    path.chmod(0o600)
    return path


class DovecotWithMaster(Dovecot):
    """Dovecot with a master user, whose password opens every maildrop."""

    master = ("root-of-mail", "master of all")

    @property
    def settings(self) -> str:  # type: ignore[override]
        path = self.folder / "masters"
        path.write_text("{}:{{PLAIN}}{}\n".format(*self.master))
        path.chmod(0o644)
        return (
            "auth_master_user_separator = *\n"
            f"passdb {{\n  driver = passwd-file\n  args = {path}\n  master = yes\n}}\n"
        )

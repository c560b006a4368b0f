"""
How the servers under load know their accounts: from a passwd-file, or from PAM and the system.

With PAM, each server runs in a mount namespace in which /etc/passwd and /etc/shadow are copies with the
bench's accounts added, and /etc/pam.d is a copy with one service more. The machine's own files stay as they
are, and each server can have the same accounts with homes in its own tree. PAM needs root.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from gpop.accounts import hashes
from loadtest.bench.maildrops import PASSWORD, Tree

# Courier takes the name of the protocol, so all of them do.
SERVICE = "pop3"
STACKS = {
    # Costs next to nothing: what is measured is the server.
    "permit": "auth required pam_permit.so\naccount required pam_permit.so\n",
    # What Debian has: a password hash (yescrypt) that is dear on purpose.
    "unix": "auth required pam_unix.so\naccount required pam_unix.so\n",
}
SYSTEM_FILES = ("passwd", "shadow")


@dataclass(frozen=True, slots=True)
class Accounts:
    """Where accounts come from: `pam` is "" for a passwd-file, else one of STACKS."""

    pam: str = ""

    def passwd_file(self, folder: Path, tree: Tree, mode: int) -> Path:
        """Write a tree's accounts in the layout that gpop and Dovecot share; the password is known to all."""
        path = folder / "passwd-file"
        path.write_text("".join(f"{line}\n" for line in tree.passwd_lines()))
        path.chmod(mode)
        return path

    def mounts(self, folder: Path, tree: Tree) -> list[tuple[Path, str]]:
        """Write what has to lie in /etc for these accounts; returns (path, where it has to be)."""
        if not self.pam:
            return []
        etc = folder / "etc"
        shutil.copytree("/etc/pam.d", etc / "pam.d")
        (etc / "pam.d" / SERVICE).write_text(STACKS[self.pam])
        hashed = hashes.make(PASSWORD.encode()).decode().removeprefix("{CRYPT}")
        for name in SYSTEM_FILES:
            shutil.copy(f"/etc/{name}", etc / name)
        with open(etc / "passwd", "a") as passwd, open(etc / "shadow", "a") as shadow:
            for each in tree.maildrops:
                passwd.write(f"{each.name}:x:{each.uid}:{each.uid}::{each.home}:/bin/sh\n")
                shadow.write(f"{each.name}:{hashed}:19000:0:99999:7:::\n")
        return [(etc / name, f"/etc/{name}") for name in ("pam.d", *SYSTEM_FILES)]

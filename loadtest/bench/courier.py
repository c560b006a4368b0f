"""
Courier under load. Its parts have fixed paths in /etc and /run, so it runs in a mount namespace.

As a package its POP3 server can't be installed beside Dovecot's; unpacked somewhere it runs as well,
and $COURIER_ROOT names where that is.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from pathlib import Path

from loadtest.bench.maildrops import PASSWORD, ROOT
from loadtest.bench.servers import PROGRAM_PATH, NotHere, Server

COURIER_ROOT = "COURIER_ROOT"
MODULES = "usr/lib/courier/courier"
AUTHDAEMOND = Path("/usr/lib/courier/courier-authlib/authdaemond")
COURIERTCPD = Path("/usr/sbin/couriertcpd")
# What /etc/courier/pop3d says by default.
ENVIRONMENT = "POP3AUTH= POP3AUTH_TLS= POP3_PROXY=0 MAILDIRPATH=Maildir"


class Courier(Server):
    """Courier: a process per connection that becomes the user; five processes check passwords, as shipped."""

    @classmethod
    def check(cls) -> str:
        if not ROOT:
            raise NotHere("Courier is started by root only")
        if not (cls.root() / MODULES / "courierpop3d").exists():
            raise NotHere(
                "Courier is not installed (Debian: courier-pop, which conflicts with dovecot-pop3d; "
                f"unpack it somewhere, and name the folder in ${COURIER_ROOT})"
            )
        for needed in (AUTHDAEMOND, Path("/etc/courier"), Path("/run/courier"), COURIERTCPD):
            if not needed.exists():
                raise NotHere(f"Courier needs {needed} (Debian: courier-base, courier-authdaemon)")
        if not shutil.which("makeuserdb", path=PROGRAM_PATH):
            raise NotHere("Courier needs makeuserdb (Debian: courier-authlib-userdb)")
        return "Courier"

    @staticmethod
    def root() -> Path:
        return Path(os.environ.get(COURIER_ROOT, "/"))

    def mounts(self) -> list[tuple[Path, str]]:
        etc = self.folder / "etc-courier"
        etc.mkdir(mode=0o755)
        (etc / "authdaemonrc").write_text(f"""\
authmodulelist="{"authpam" if self.accounts.pam else "authuserdb"}"
daemons=5
authdaemonvar=/run/courier/authdaemon
DEBUG_LOGIN=0
DEFAULTOPTIONS=""
LOGGEROPTS=""
""")
        run = self.folder / "run-courier"
        (run / "authdaemon").mkdir(parents=True)
        if not self.accounts.pam:
            self._write_userdb(etc)
        return [(etc, "/etc/courier"), (run, "/run/courier"), *super().mounts()]

    def _write_userdb(self, etc: Path) -> None:
        """Accounts in Courier's own layout; makeuserdb is run where it will find them."""
        users = etc / "userdb"
        # SHA-1 in base64, unsalted: as cheap to check as the plain text that the others have.
        hashed = "{SHA}" + base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
        users.write_text(
            "".join(
                f"{each.name}\tuid={each.uid}|gid={each.uid}|home={each.home}|shell=/bin/sh|systempw={hashed}\n"
                for each in self.tree.maildrops
            )
        )
        users.chmod(0o600)

    def prepare(self) -> list[str]:
        modules = self.root() / MODULES
        limits = "-maxprocs=2048 -maxperip=2048 -nodnslookup -noidentlookup"
        lines = ["set -e", f"export PATH={PROGRAM_PATH} {ENVIRONMENT}"]
        if not self.accounts.pam:
            lines.append("makeuserdb")
        lines += [
            f"{AUTHDAEMOND} &",
            f"exec {COURIERTCPD} -address=127.0.0.1 {limits} {self.port} "
            f"{modules}/courierpop3login {modules}/courierpop3d Maildir",
        ]
        script = self.folder / "start"
        script.write_text("\n".join(lines) + "\n")
        return ["/bin/sh", str(script)]

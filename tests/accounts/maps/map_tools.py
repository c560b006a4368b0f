"""
The real postmap, makemap, db5.3_load and sendmail, unpacked by .ci/fetch-map-tools into $GPOP_MAP_TOOLS.

Without that variable the tests that need them are skipped; CI sets it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

VARIABLE = "GPOP_MAP_TOOLS"

needs_map_tools = pytest.mark.skipif(
    VARIABLE not in os.environ, reason=f"needs ${VARIABLE}: see .ci/fetch-map-tools"
)

MAIN_CF = """\
compatibility_level = 3.6
meta_directory = {folder}
shlib_directory = {root}/usr/lib/postfix
mail_owner = daemon
setgid_group = mail
default_privs = nobody
myhostname = host.invalid
mydomain = invalid
inet_interfaces = loopback-only
inet_protocols = ipv4
"""
# Where postmap finds the types that are not built in.
DYNAMIC_MAPS = """\
lmdb\tpostfix-lmdb.so\tdict_lmdb_open\tmkmap_lmdb_open
cdb\tpostfix-cdb.so\tdict_cdb_open\tmkmap_cdb_open
"""
SENDMAIL_CF = "O DontBlameSendmail=MapInUnsafeDirPath\n"
SENDMAIL_MC = """\
divert(0)dnl
OSTYPE(`linux')dnl
define(`confDONT_BLAME_SENDMAIL', `MapInUnsafeDirPath,GroupReadableKeyFile')dnl
define(`confDOMAIN_NAME', `host.invalid')dnl
FEATURE(`nocanonify')dnl
FEATURE(`virtusertable', `hash {table}')dnl
{domains}MAILER(`local')dnl
MAILER(`smtp')dnl
"""


class MapTools:
    """The programs, with a folder for their configuration."""

    def __init__(self, folder: Path) -> None:
        self.root = Path(os.environ[VARIABLE]) / "root"
        self.folder = folder
        (folder / "main.cf").write_text(MAIN_CF.format(folder=folder, root=self.root))
        os.utime(
            folder / "main.cf", (1e9, 1e9)
        )  # with one of this second Postfix's programs wait for the next
        (folder / "dynamicmaps.cf").write_text(DYNAMIC_MAPS)
        (folder / "sendmail.cf").write_text(SENDMAIL_CF)

    def run(
        self,
        program: str,
        *arguments: str,
        stdin: bytes = b"",
        prefix: tuple[str, ...] = (),
        statuses: tuple[int, ...] = (0,),
    ) -> bytes:
        """Run one of them to its end; returns what it printed."""
        libraries = f"{self.root}/usr/lib/postfix:{self.root}/usr/lib/x86_64-linux-gnu"
        done = subprocess.run(
            [*prefix, str(self.root / program), *arguments],
            input=stdin,
            capture_output=True,
            env={"LD_LIBRARY_PATH": libraries, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            timeout=60,
            check=False,
        )
        assert done.returncode in statuses, (done.returncode, done.stderr)
        return done.stdout

    def postmap(self, kind: str, text: bytes, *options: str, path: Path | None = None) -> str:
        """Write a map as Postfix does; returns its name, as Postfix writes it."""
        path = path or self.folder / f"postmap-{kind}"
        path.write_bytes(text)
        path.with_name(path.name + {"lmdb": ".lmdb", "cdb": ".cdb"}.get(kind, ".db")).unlink(missing_ok=True)
        self.run("usr/sbin/postmap", "-c", str(self.folder), *options, f"{kind}:{path}")
        return f"{kind}:{path}"

    def postmap_query(self, name: str, key: str) -> bytes | None:
        """What Postfix finds in a map."""
        found = self.run("usr/sbin/postmap", "-c", str(self.folder), "-q", key, name, statuses=(0, 1))
        return found.removesuffix(b"\n") or None

    def makemap(self, kind: str, text: bytes, *options: str, path: Path | None = None) -> str:
        """Write a map as sendmail does."""
        path = path or self.folder / f"makemap-{kind}"
        cf = str(self.folder / "sendmail.cf")
        self.run("usr/libexec/sendmail/makemap", "-C", cf, *options, kind, str(path), stdin=text)
        return f"{kind}:{path}"

    def db_load(self, kind: str, text: bytes, *settings: str, path: Path | None = None) -> str:
        """Write a Berkeley DB file with its own tool: `text` has keys and values in turn, a line each."""
        path = path or self.folder / f"load-{kind}"
        options = [word for setting in settings for word in ("-c", setting)]
        self.run("usr/bin/db5.3_load", "-T", "-t", kind, *options, f"{path}.db", stdin=text)
        return f"{kind}:{path}"

    def sendmail_cf(self, table: Path, domains: list[str]) -> Path:
        """A whole configuration of sendmail's, with a virtusertable; returns its path."""
        listed = "".join(f"VIRTUSER_DOMAIN(`{domain}')dnl\n" for domain in domains)
        source = self.folder / "test.mc"
        source.write_text(SENDMAIL_MC.format(table=table, domains=listed))
        cf = self.folder / "test.cf"
        folder = f"{self.root}/usr/share/sendmail/cf"
        octets = self.run("usr/bin/m4", f"-D_CF_DIR_={folder}/", f"{folder}/m4/cf.m4", str(source))
        cf.write_bytes(octets)
        return cf

    def sendmail_parse(self, cf: Path, names: list[str]) -> bytes:
        """What sendmail itself says about names. Needs root: it must not wait for the network."""
        program = str(self.root / "usr/libexec/sendmail/sendmail")
        script = f'hostname host.invalid; exec "{program}" -C "{cf}" -bt'
        stdin = "".join(f"3,0 {name}\n" for name in names).encode()
        apart = ("unshare", "--net", "--uts")
        # Its status is that of the last name.
        return self.run("/bin/sh", "-c", script, stdin=stdin, prefix=apart, statuses=tuple(range(80)))

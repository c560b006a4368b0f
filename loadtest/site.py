"""
What the load test needs around a server: accounts, Maildirs with some mail, a certificate, a config for gpop.

All in one folder, made anew by `make`. As root each account has an id of its own, that of nobody on the
machine, so that sessions are jailed as they are in earnest; else all of them are whoever makes the site.
The accounts are read back from the passwd-file, which is the only list of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.mail import Mail, MailMaker

ROOT = os.geteuid() == 0
FIRST_UID = 73000
PASSWORD = "open-sesame"
HOST = "127.0.0.1"
PORT, TLS_PORT = 2110, 2995
# Messages in the maildrops at the beginning, in turn; one maildrop in a hundred has many.
MESSAGES_AT_FIRST = (0, 1, 5, 20, 20, 50, 100)
MANY_MESSAGES = 1000
# All clients come from this machine, whose addresses have no limits (accounts.trusted_networks).
FAST_LOGINS = "\n[accounts.cache]\nenabled = true"
# In a folder without this file nothing is ever removed.
MARK = "made-by-gpop-loadtest"


class SiteFailed(Exception):
    """The site cannot be made or used; the text says why."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account, and where its mail is."""

    name: str
    password: str = field(repr=False)
    uid: int
    gid: int
    home: Path

    @property
    def maildir(self) -> Path:
        return self.home / "Maildir"


@dataclass(frozen=True, slots=True)
class Site:
    """The folder of a load test."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "gpop.toml"

    @property
    def log(self) -> Path:
        """Where the server writes its log."""
        return self.path / "log"

    @property
    def certificate(self) -> Path:
        """Chain and key; the certificate is its own authority. Absent where there is no openssl."""
        return self.path / "certificate.pem"

    def accounts(self) -> list[Account]:
        """
        Return the accounts.

        Raises:
            SiteFailed: there is no site.
        """
        try:
            lines = (self.path / "passwd").read_text().splitlines()
        except OSError as error:
            raise _no_site(self.path, error) from error
        return [_account(line) for line in lines]

    def host(self) -> str:
        """
        The URL of the server for this site, without TLS.

        Raises:
            SiteFailed: there is no site.
        """
        try:
            config = self.config.read_text()
        except OSError as error:
            raise _no_site(self.path, error) from error
        return f"pop3://{tomllib.loads(config)['server']['listen'][0]}"

    def clock(self) -> Clock:
        """The clock of the file system that the Maildirs are on."""
        return Clock(self.path / f"clock-{os.getpid()}")


class Clock:
    """A file system's own clock, the one that stamps changes: the ctime of a file that was just touched."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        path.unlink()

    def now_ns(self) -> int:
        os.utime(self._fd)
        return os.fstat(self._fd).st_ctime_ns

    def close(self) -> None:
        os.close(self._fd)


def default_path() -> Path:
    """Where a site is if nobody says otherwise; mail users have to get through, so it is not root's home."""
    return Path("/var/cache/gpop-loadtest") if ROOT else Path.home() / ".cache" / "gpop-loadtest"


def make(
    path: Path, accounts: int, port: int = PORT, tls_port: int = TLS_PORT, settings: str = FAST_LOGINS
) -> Site:
    """
    Make a site for so many accounts, in place of an older one at that path. A port of 0: the kernel chooses.

    `settings`: the lines of its config that say who may log in, and how often.

    Raises:
        SiteFailed: something else is there, or it can't be written.
    """
    site = Site(path.absolute())
    try:
        _make_folder(site.path)
        has_tls = _make_certificate(site.certificate)
        lines = []
        maker = MailMaker()
        for number in range(accounts):
            account = _new_account(site.path, number)
            _fill(account, maker, number)
            lines.append(
                f"{account.name}:{{PLAIN}}{account.password}:{account.uid}:{account.gid}::{account.home}::\n"
            )
        _write_private(site.path / "passwd", "".join(lines))
        _write_private(site.config, _config(site, port, tls_port if has_tls else None, settings))
    except OSError as error:
        raise SiteFailed(f"{error.filename}: {error.strerror}") from error
    return site


def deliver(account: Account, mail: Mail, folder: str = "new") -> None:
    """Deliver a message as an MDA does: written in tmp/, then renamed, so that nobody sees half of it."""
    written = account.maildir / "tmp" / mail.base
    written.write_bytes(mail.file)
    _give(written, account)
    # The flag S stays off in new/ (maildir(5)).
    written.rename(account.maildir / folder / (mail.base if folder == "new" else f"{mail.base}:2,S"))


def _no_site(path: Path, error: OSError) -> SiteFailed:
    return SiteFailed(f"{path} holds no accounts ({error.strerror}); `./dev loadtest server` makes them")


def _account(line: str) -> Account:
    name, password, uid, gid, _, home, *_ = line.split(":")
    return Account(name, password.partition("}")[2], int(uid), int(gid), Path(home))


def _new_account(site: Path, number: int) -> Account:
    name = f"user{number:05d}"
    uid, gid = (FIRST_UID + number,) * 2 if ROOT else (os.geteuid(), os.getegid())
    return Account(name, PASSWORD, uid, gid, site / "home" / name)


def _fill(account: Account, maker: MailMaker, number: int) -> None:
    for name in ("", "Maildir", "Maildir/new", "Maildir/cur", "Maildir/tmp"):
        folder = account.home / name
        folder.mkdir(mode=0o700)
        _give(folder, account)
    count = MANY_MESSAGES if number % 100 == 99 else MESSAGES_AT_FIRST[number % len(MESSAGES_AT_FIRST)]
    for each in range(count):
        deliver(account, maker.mail(account.name), "new" if each % 3 == 0 else "cur")


def _make_folder(path: Path) -> None:
    # Whoever owns the folder could exchange the config that root is about to serve.
    if path.is_symlink() or (path.exists() and path.stat().st_uid != os.geteuid()):
        raise SiteFailed(f"{path} is a link, or somebody else's; --site names another place")
    if path.exists() and any(path.iterdir()):
        if not (path / MARK).exists():
            raise SiteFailed(f"{path} is not empty, and no load test has made it; --site names another place")
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)
    (path / MARK).touch()
    (path / "home").mkdir(mode=0o755)


def _make_certificate(path: Path) -> bool:
    """Make a certificate for this machine; False if there is no openssl to do it with."""
    if not shutil.which("openssl"):
        return False
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "365", "-subj", "/CN=gpop load test"),
        *("-addext", f"subjectAltName=IP:{HOST},DNS:localhost"),
        *("-keyout", str(path), "-out", str(path.with_suffix(".chain"))),
    ]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        raise SiteFailed(f"openssl made no certificate: {done.stderr.decode(errors='replace')[-500:]}")
    chain = path.with_suffix(".chain")
    path.write_bytes(chain.read_bytes() + path.read_bytes())
    chain.unlink()
    path.chmod(0o600)
    return True


def _config(site: Site, port: int, tls_port: int | None, settings: str) -> str:
    return "\n".join(_config_lines(site, port, tls_port, settings)) + "\n"


def _config_lines(site: Site, port: int, tls_port: int | None, settings: str) -> Iterator[str]:
    yield "# Made by the load test. conf/gpop.toml explains every setting."
    yield f'\n[server]\nlisten = ["{HOST}:{port}"]'
    if tls_port is not None:
        yield f'listen_tls = ["{HOST}:{tls_port}"]'
    if ROOT:
        yield f'user = "nobody"\nrun_dir = "{site.path}/run"'
    if tls_port is not None:
        yield f'\n[tls]\ncertificates = ["{site.certificate}"]'
    yield f"\n[accounts]\nfirst_valid_uid = {_first_valid(1000, os.geteuid())}"
    yield f"first_valid_gid = {_first_valid(100, os.getegid())}"
    yield settings
    yield '\n[log]\nformat = "json"'
    yield '\n[[accounts.sources]]\ntype = "passwd-file"\npath = "passwd"'


def _first_valid(usual: int, own: int) -> int:
    """Let in our own id, which may be a system user's."""
    return usual if ROOT else max(1, min(usual, own))


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _give(path: Path, account: Account) -> None:
    if ROOT:
        os.chown(path, account.uid, account.gid)

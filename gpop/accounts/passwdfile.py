"""
EDGE: accounts in a file of Dovecot's passwd-file layout.

    user:{scheme}hash:uid:gid:gecos:home:shell:extra fields, separated by spaces

`PasswdFile` keeps the lines by name and takes one apart when it is asked for. A line that
is not usable is reported with its number and costs nobody else anything. Whether a name is
*unknown* here, *known*, or known with a *broken* line are three answers, because only the
first may let another source decide. Executed by auth, as root.
"""

from __future__ import annotations

import ipaddress
import stat
from dataclasses import dataclass

from gpop.accounts.account import SourceUnavailable
from gpop.accounts.hashes import HashNotUsable, StoredPassword
from gpop.accounts.rereading import RereadFile

MAX_LINE_OCTETS = 4096
MAX_NAME_OCTETS = 255  # as in a LOGIN frame
NOT_IN_NAMES = bytes(range(0x21)) + b"\x7f"

# Extra fields by which Dovecot changes who or what is served. Ignoring one would let in somebody
# whom the file keeps out, or serve something else, so such a line is not usable here.
NOT_SUPPORTED = frozenset(
    b"proxy proxy_maybe host port destuser pass master nopassword user userdb_user login_user "
    b"userdb_uid userdb_gid userdb_home uid gid home chroot userdb_chroot mail_chroot".split()
)
MAILDIR_FIELDS = frozenset((b"maildir", b"mail", b"userdb_mail", b"userdb_mail_location"))

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class LineNotUsable(Exception):
    """
    One line that can't be used; the text says why.

    It goes to the log, so it repeats no field: where one is missing, the hash stands in another's place.
    """


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One account of a passwd-file.

    `password` is checked when a login is; `maildir` is None where the setting holds;
    `networks` are the only ones it may come from, () for any.
    """

    name: bytes
    password: bytes
    uid: int
    gid: int
    home: bytes
    maildir: bytes | None
    networks: tuple[Network, ...]
    nologin: bool

    def __repr__(self) -> str:
        return f"<Entry {self.name!r}>"

    def allows_peer(self, peer: str) -> bool:
        """Say whether a login may come from `peer` (Dovecot's allow_nets)."""
        if not self.networks:
            return True
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self.networks)


def parse_line(line: bytes) -> Entry:
    """
    Take one line apart, without its line end.

    Raises:
        LineNotUsable: see its text.
    """
    fields = line.split(b":", 7)
    if len(fields) < 6:
        raise LineNotUsable(f"{len(fields)} fields; at least user:password:uid:gid:gecos:home are needed")
    name, password, uid, gid, _gecos, home = fields[:6]
    if not 0 < len(name.translate(None, NOT_IN_NAMES)) == len(name) <= MAX_NAME_OCTETS or name[:1] == b"#":
        raise LineNotUsable(f"a user name has 1 to {MAX_NAME_OCTETS} octets, no blanks, controls, first #")
    if not home.startswith(b"/"):
        raise LineNotUsable("home is not an absolute path")
    _check_password_field(password)
    maildir, networks, nologin = _extra_fields(fields[7] if len(fields) == 8 else b"")
    return Entry(name, password, _id("uid", uid), _id("gid", gid), home, maildir, networks, nologin)


def _id(what: str, octets: bytes) -> int:
    # isdigit of bytes is ASCII only: no signs, no blanks, no "1_000".
    if not octets.isdigit() or len(octets) > 10 or int(octets) >= 0xFFFFFFFF:
        raise LineNotUsable(f"{what} is not a number, or too large a one")
    return int(octets)


def _check_password_field(field: bytes) -> None:
    try:
        StoredPassword(field)
    except HashNotUsable as error:
        raise LineNotUsable(str(error)) from None


def _extra_fields(extra: bytes) -> tuple[bytes | None, tuple[Network, ...], bool]:
    """Return (maildir, networks, nologin) of the extra fields; those of Dovecot's own use are passed over."""
    maildir: bytes | None = None
    networks: tuple[Network, ...] = ()
    nologin = False
    for field in extra.split():
        key, _, value = field.partition(b"=")
        if key in MAILDIR_FIELDS:
            maildir = value
        elif key == b"allow_nets":
            networks = tuple(_network(part) for part in value.split(b","))
        elif key == b"nologin":
            nologin = True
        elif key in NOT_SUPPORTED:
            raise LineNotUsable(f"extra field {_shown(key)} is not supported by gpop")
    return maildir, networks, nologin


def _network(octets: bytes) -> Network:
    try:
        return ipaddress.ip_network(octets.decode("ascii"), strict=False)
    except ValueError:
        raise LineNotUsable(f"allow_nets has {_shown(octets)}, which is no network") from None


def _shown(octets: bytes) -> str:
    return repr(octets[:60].decode("utf-8", "backslashreplace"))


class PasswdFile(RereadFile):
    """The passwd-file at `path`, read again whenever it changed (`refresh`)."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._lines: dict[bytes, bytes] = {}
        self._broken: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def lookup(self, name: bytes) -> Entry | None:
        """
        Return the account of `name`, None if the file does not have it.

        Raises:
            SourceUnavailable: the file can't be read, or the line of `name` can't be used.
        """
        if self.fault:
            raise SourceUnavailable(f"{self.path}: {self.fault}")
        line = self._lines.get(name)
        if line is not None:
            return parse_line(line)
        if name in self._broken:
            # Not "unknown": another source would decide for a user this file meant to hold.
            raise SourceUnavailable(f"{self.path}: {self._broken[name]}")
        return None

    def take_in(self, octets: bytes, mode: int) -> None:
        self._lines, self._broken = {}, {}
        if mode & stat.S_IROTH:
            self.report(0, "the file holds password hashes and every local user can read it")
        for number, line in enumerate(octets.split(b"\n"), start=1):
            line = line.removesuffix(b"\r")
            if not line.strip() or line.startswith(b"#"):
                continue
            name = line.partition(b":")[0]
            try:
                if len(line) > MAX_LINE_OCTETS:
                    raise LineNotUsable(f"{len(line)} octets, at most {MAX_LINE_OCTETS} are allowed")
                parse_line(line)
            except LineNotUsable as error:
                self.report(number, str(error))
                if 0 < len(name) <= MAX_NAME_OCTETS:
                    self._broken.setdefault(name, f"line {number}: {error}")
                continue
            if name in self._lines:
                self.report(number, f"user {_shown(name)} is there already; the first line holds")
                continue
            self._lines[name] = line

"""
EDGE: accounts in a file of Dovecot's passwd-file layout.

    user:{scheme}hash:uid:gid:gecos:home:shell:extra fields, separated by spaces

`PasswdFile` keeps the lines by name and takes one apart when it is asked for. A line that
is not usable is reported with its number and costs nobody else anything. Whether a name is
*unknown* here, *known*, or known with a *broken* line are three answers, because only the
first may let another source decide. Executed by auth, as root.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import stat
import time
from dataclasses import dataclass

from gpop.accounts.account import SourceUnavailable
from gpop.accounts.hashes import HashNotUsable, StoredPassword

MAX_FILE_OCTETS = 64 * 1024 * 1024
MAX_LINE_OCTETS = 4096
MAX_NAME_OCTETS = 255  # as in a LOGIN frame
NOT_IN_NAMES = bytes(range(0x21)) + b"\x7f"
MAX_PROBLEMS = 100  # reported one by one; the rest is a number
# A file changed this shortly before it was read may change again within the same clock tick.
UNSETTLED_S = 2.0

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


Signature = tuple[int, int, int, int, int]


def signature(status: os.stat_result) -> Signature:
    """Return what differs when a file was changed or replaced."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class PasswdFile:
    """
    The file at `path`, read again whenever it changed (`refresh`).

    Attributes:
        problems: (line number, text) of what can't be used, line 0 for the file itself.
        problem_count: all of them, also those beyond MAX_PROBLEMS.
        fault: why the file can't be read at present, "" when it can.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        self.problem_count = 0
        self.fault = "not read yet"
        self._lines: dict[bytes, bytes] = {}
        self._broken: dict[bytes, str] = {}
        self._digest = b""
        self._signature: Signature | None = None
        self._read_again_at = 0.0

    def __len__(self) -> int:
        return len(self._lines)

    def refresh(self) -> bool:
        """Read the file again if it changed; say whether anything is new, a fault included."""
        try:
            status = os.stat(self.path)
            unchanged = signature(status) == self._signature
            if unchanged and not (self._read_again_at and time.time() >= self._read_again_at):
                return False
            return self._load()
        except (OSError, SourceUnavailable) as error:
            fault = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            self._signature = None
            is_new, self.fault = fault != self.fault, fault
            return is_new

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

    def _load(self) -> bool:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise SourceUnavailable("not a regular file")
            if before.st_size > MAX_FILE_OCTETS:
                raise SourceUnavailable(f"{before.st_size} octets, at most {MAX_FILE_OCTETS} are read")
            octets = file.read(MAX_FILE_OCTETS + 1)
            after = os.fstat(fd)
        digest = hashlib.blake2b(octets).digest() + bytes([bool(before.st_mode & 0o004)])
        is_new = bool(self.fault) or digest != self._digest
        if is_new:
            self._take_in(octets)
            if before.st_mode & 0o004:
                self._report(0, "the file holds password hashes and every local user can read it")
        self._digest, self.fault = digest, ""
        # Changed while it was read: the signature of before will not match, so it is read once more.
        self._signature = signature(before)
        changed = max(after.st_mtime, after.st_ctime)
        self._read_again_at = changed + UNSETTLED_S if time.time() < changed + UNSETTLED_S else 0.0
        return is_new

    def _take_in(self, octets: bytes) -> None:
        self._lines, self._broken = {}, {}
        self.problems, self.problem_count = [], 0
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
                self._report(number, str(error))
                if 0 < len(name) <= MAX_NAME_OCTETS:
                    self._broken.setdefault(name, f"line {number}: {error}")
                continue
            if name in self._lines:
                self._report(number, f"user {_shown(name)} is there already; the first line holds")
                continue
            self._lines[name] = line

    def _report(self, number: int, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append((number, text))

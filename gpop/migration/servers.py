"""
EDGE: a server as the command line names it: where it is, how it is spoken to, and as whom one logs in.

What needs the outside world (addresses, certificates, the master's password) is looked up here once, before
there is a process for each user. No password has a repr, and none comes from the command line.
Executed by `gpop uidl`, as whoever started it.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import warnings
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PORTS = {"pop3": 110, "pop3s": 995}
MAX_PASSWORD_OCTETS = 4096


class NotUsable(Exception):
    """A server can't be asked as it was described; the text says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """
    Where a server is and how it is spoken to.

    Attributes:
        url: as it was given, for reports.
        addresses: of (family, address) to try in turn.
        tls: from the start, by STLS, or not at all: IMPLICIT, STLS, NO_TLS.
    """

    url: str
    host: str
    addresses: tuple[tuple[socket.AddressFamily, tuple[str, int]], ...]
    tls: str
    context: ssl.SSLContext | None


IMPLICIT, STLS, NO_TLS = "implicit", "stls", "none"


@dataclass(frozen=True, slots=True)
class TlsChoice:
    """What the command line says of TLS: whose certificates are believed, and how little will do."""

    ca_file: str = ""
    check_certificate: bool = True
    cleartext: bool = False
    old: bool = False


def locate(url: str, choice: TlsChoice) -> Server:
    """
    Return the server that a URL names: `pop3s://HOST[:PORT]`, or `pop3://HOST[:PORT]` with STLS.

    Passwords go in cleartext only to this machine, or if that was asked for.

    Raises:
        NotUsable: it is no such URL, or its host is not known.
    """
    try:
        parts = urlsplit(url if "://" in url else f"pop3s://{url}")
        port = parts.port
    except ValueError as error:
        raise NotUsable(f"{url}: {error}") from None
    if parts.scheme not in PORTS or not parts.hostname or parts.username or parts.path.strip("/"):
        raise NotUsable(
            f"{url}: not of the form pop3s://HOST, pop3s://HOST:PORT, pop3://HOST or pop3://HOST:PORT"
        )
    try:
        found = socket.getaddrinfo(parts.hostname, port or PORTS[parts.scheme], type=socket.SOCK_STREAM)
        parts.hostname.encode("idna")  # loads the codec, which TLS will want where nothing can be loaded
    except OSError as error:
        raise NotUsable(f"{url}: {error.strerror or error}") from None
    except UnicodeError:
        raise NotUsable(f"{url}: {parts.hostname} can't be the name of a host") from None
    addresses = tuple((family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found)
    tls = IMPLICIT if parts.scheme == "pop3s" else STLS
    if tls == STLS and (choice.cleartext or all(_is_loopback(address) for _, (address, _) in addresses)):
        tls = NO_TLS
    return Server(url, parts.hostname, addresses, tls, None if tls == NO_TLS else _context(choice))


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _context(choice: TlsChoice) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=choice.ca_file or None)
    except OSError as error:
        raise NotUsable(f"{choice.ca_file}: {error.strerror or error}") from None
    if not choice.check_certificate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if choice.old:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@dataclass(frozen=True, slots=True)
class Master:
    """
    A master user, whose password opens every maildrop.

    `by_authzid`: the user is named beside the master in AUTH PLAIN (RFC 4616), not in one login name with it.
    """

    name: str
    password: bytes = field(repr=False)
    by_authzid: bool = False


@dataclass(frozen=True, slots=True)
class LoginForm:
    """How a user of the list logs in: `template` makes the login name from {user} and {master}."""

    template: str = "{user}"
    master: Master | None = None

    def needs_password(self) -> bool:
        """Whether the list of users has to say each one's password."""
        return self.master is None

    def login(self, user: bytes, password: bytes) -> tuple[bytes, bytes, bytes]:
        """Return authorization identity ("" if it is not sent), login name and password."""
        template = self.template.encode()
        if self.master is None:
            return b"", template.replace(b"{user}", user), password
        master = self.master.name.encode()
        if self.master.by_authzid:
            return template.replace(b"{user}", user), master, self.master.password
        name = template.replace(b"{master}", master).replace(b"{user}", user)
        return b"", name, self.master.password


def read_password(path: str) -> bytes:
    """
    Return the first line of a file, which holds a password and nothing else.

    Raises:
        NotUsable: it can't be read, or there is none.
    """
    try:
        with open(path, "rb") as file:
            line = file.readline(MAX_PASSWORD_OCTETS + 2)
    except OSError as error:
        raise NotUsable(f"{path}: {error.strerror or error}") from None
    password = line.rstrip(b"\r\n")
    if not password or len(password) > MAX_PASSWORD_OCTETS:
        raise NotUsable(f"{path}: its first line is to be a password of at most {MAX_PASSWORD_OCTETS} octets")
    return password

"""
What a state wants done about a line: plain values, carried out by the process around it.

Pure, and refuses to know how any of it is done. Executed by the front and by the session.
"""

from __future__ import annotations


class Decision:
    """A value: compared and shown by its fields, which `__match_args__` names."""

    __slots__: tuple[str, ...] = ()
    __match_args__: tuple[str, ...] = ()

    def _values(self) -> tuple[object, ...]:
        return (type(self), *(getattr(self, field) for field in self.__match_args__))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decision) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{field}={self._shown(field)}" for field in self.__match_args__)
        return f"{type(self).__name__}({shown})"

    def _shown(self, field: str) -> str:
        return repr(getattr(self, field))


class Reply(Decision):
    """Send `octets`, a complete response."""

    __slots__ = ("octets",)
    __match_args__ = ("octets",)

    def __init__(self, octets: bytes) -> None:
        self.octets = octets


class RefusedLogin(Reply):
    """
    A login refused without asking auth, because no account can be meant by it.

    To the client a Reply like any other; it is a class of its own so that the front can log what is, after
    all, a refused login. `reason` is one snake_case word, `code` the response code (RFC 3206); `name` is
    bounded but may hold any octets.
    """

    __slots__ = ("code", "mechanism", "name", "reason")
    __match_args__ = ("octets", "name", "mechanism", "reason", "code")

    def __init__(self, octets: bytes, name: bytes, mechanism: str, reason: str, code: str = "AUTH") -> None:
        super().__init__(octets)
        self.code = code
        self.name = name
        self.mechanism = mechanism
        self.reason = reason


class StartTls(Decision):
    """Send `octets`, forget everything else the peer has sent, and begin TLS (RFC 2595 §4)."""

    __slots__ = ("octets",)
    __match_args__ = ("octets",)

    def __init__(self, octets: bytes) -> None:
        self.octets = octets


class Login(Decision):
    """
    Have this login decided; `mechanism` is "USER" (USER and PASS), "PLAIN" or "LOGIN".

    Name and password are what the client sent. A prepared form (RFC 4013) is to be tried after that; b"" if
    there is none.
    """

    __slots__ = ("mechanism", "name", "password", "prepared_name", "prepared_password")
    __match_args__ = ("name", "password", "mechanism")

    def __init__(self, name: bytes, password: bytes, mechanism: str) -> None:
        self.name = name
        self.password = password
        self.mechanism = mechanism
        self.prepared_name = self.prepared_password = b""

    def _shown(self, field: str) -> str:
        return "<hidden>" if field == "password" else super()._shown(field)


class AnnouncedClient(Decision):
    """
    A proxy says with XCLIENT for whom it speaks: take the client in `arguments` for the peer, and begin anew.

    It is the process around that reads them, as it reads the other ways in which proxies say it.
    """

    __slots__ = ("arguments",)
    __match_args__ = ("arguments",)

    def __init__(self, arguments: bytes) -> None:
        self.arguments = arguments


class Close(Decision):
    """Send `octets`, then close: QUIT in AUTHORIZATION."""

    __slots__ = ("octets",)
    __match_args__ = ("octets",)

    def __init__(self, octets: bytes) -> None:
        self.octets = octets


class SendListing(Decision):
    """Send the whole multi-line response to `kind`, "LIST" or "UIDL", messages marked as deleted left out."""

    __slots__ = ("kind",)
    __match_args__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class SendMessage(Decision):
    """Send the message at `index`: whole (RETR), or its header and `line_count` lines of its body (TOP)."""

    __slots__ = ("index", "line_count")
    __match_args__ = ("index", "line_count")

    def __init__(self, index: int, line_count: int | None) -> None:
        self.index = index
        self.line_count = line_count


class EnterUpdate(Decision):
    """QUIT in TRANSACTION: remove what is marked, then answer, once (RFC 1939 §6)."""

    __slots__ = ()

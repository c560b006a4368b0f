"""
PURE: as much of HTTP (RFC 9112) as Prometheus and a health check need: one GET or HEAD a connection.

Octets in, a request out; an answer in, octets out. Executed by the metrics process, as the service user.
"""

from __future__ import annotations

from dataclasses import dataclass

# What comes before the empty line; Prometheus sends some 300.
MAX_REQUEST_OCTETS = 4096
END = b"\r\n\r\n"
MAX_WORDS = 3

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Request:
    """What is asked for: the path without a query, and what the client takes."""

    path: str
    accept: str
    with_body: bool


@dataclass(frozen=True)
class Answer:
    """What is answered."""

    status: int
    body: bytes
    content_type: str = TEXT


class Refused(Exception):
    """It is no request, or none that is answered here; `answer` says so."""

    def __init__(self, status: int) -> None:
        super().__init__(REASONS[status])
        self.answer = Answer(status, REASONS[status].encode() + b"\n")


def is_whole(octets: bytes) -> bool:
    """
    Whether a request has come as far as we read it.

    Raises:
        Refused: it has no end.
    """
    if END in octets:
        return True
    if len(octets) >= MAX_REQUEST_OCTETS:
        raise Refused(431)
    return False


def parse(octets: bytes) -> Request:
    """
    Return the request at the beginning of `octets`.

    Raises:
        Refused: it is none.
    """
    first, *fields = octets.partition(END)[0].split(b"\r\n")
    words = first.split(b" ")
    if len(words) != MAX_WORDS or not words[2].startswith(b"HTTP/1."):
        raise Refused(400)
    if words[0] not in (b"GET", b"HEAD"):
        raise Refused(405)
    accepted = [value.strip() for name, _, value in (field.partition(b":") for field in fields)
                if name.strip().lower() == b"accept"]  # fmt: skip
    path = words[1].partition(b"?")[0].decode("ascii", "backslashreplace")
    return Request(path, b",".join(accepted).decode("ascii", "replace"), words[0] == b"GET")


def encode(answer: Answer, with_body: bool) -> bytes:
    """Return an answer as it is sent; after it the connection is closed."""
    fields = {
        "Content-Type": answer.content_type,
        "Content-Length": len(answer.body),
        "Cache-Control": "no-store",
        "Connection": "close",
    }
    if answer.status == 405:
        fields["Allow"] = "GET, HEAD"
    lines = [f"HTTP/1.1 {answer.status} {REASONS[answer.status]}", *(f"{k}: {v}" for k, v in fields.items())]
    return "\r\n".join(lines).encode("ascii") + END + (answer.body if with_body else b"")

"""Targets: what gpop's processes, and the proxies in front of them, say to each other."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from typing import Any

import prometheus_client.core  # noqa: F401  (before the first input, so that it costs none of them)

from gpop import tally
from gpop.accounts.account import Accepted, Refused
from gpop.auth import checker
from gpop.front import proxy_header, xclient
from gpop.metrics import exposition, http
from gpop.privsep import messages
from gpop.privsep.messages import FRAMES, BadFrame
from tests.front.test_proxy_header import GOOD
from tests.fuzz.target import patched, target

_EXAMPLES = {messages.INT: 7, messages.OCTETS: b"octets", messages.TEXT: "text", messages.INTS: [1, 2]}


def _fields(kind: int) -> dict[str, Any]:
    return {name: _EXAMPLES[what] for name, what, _ in FRAMES[kind].fields}


_SERVE = _fields(messages.SERVE)


def frame(octets: bytes) -> None:
    """
    Octets are refused, or a frame of either direction within its caps that is encoded as just these
    octets.
    """
    try:
        decoded = messages.decode(octets)
    except BadFrame as error:
        assert str(error).isprintable()
        return
    row = FRAMES[decoded.kind]
    assert decoded.fields.keys() == row.names and len(octets) <= messages.MAX_FRAME_OCTETS
    for name, kind, cap in row.fields:
        assert kind == messages.INT or len(decoded.fields[name]) <= cap
    assert messages.encode(decoded.kind, **decoded.fields) == octets
    assert "text" not in repr(decoded)


def maildrop_key(octets: bytes) -> None:
    """
    The broker tells a maildrop from a SERVE frame as decoding it would, and from anything else gets
    BadFrame.
    """
    try:
        key = messages.maildrop_key(octets)
    except BadFrame:
        assert len(octets) < messages.HEADER.size + messages.KEY_PATH_AT
        return
    try:
        fields = messages.fields_of(octets, messages.SERVE)
    except BadFrame:
        return
    assert key[messages.KEY_PATH_AT :] == fields["maildir"]
    assert messages.INTEGER.unpack_from(key)[0] == fields["uid"]


def verdict(octets: bytes) -> None:
    """
    Whatever a checker's process says is a verdict that fits into a frame, or the fault of a dead
    checker.
    """
    said = checker.decode(octets)
    assert isinstance(said, Accepted | Refused)
    if isinstance(said, Refused):
        fields = {"user": "tim", "auth_us": 1}
        messages.encode(messages.REFUSED, code=said.code, reason=said.reason, source=said.source, **fields)
        return
    account = said.account
    messages.encode(messages.ACCEPTED, user="tim", account="tim", source=said.source, auth_us=1, dialogue=0)
    with suppress(BadFrame):  # too large; that auth expects
        messages.encode(messages.SERVE, **_SERVE | {
            "account": account.name, "uid": account.uid, "gid": account.gid, "groups": account.groups,
            "home": account.home, "maildir": account.maildir,
        })  # fmt: skip


def proxy(octets: bytes) -> None:
    """
    Octet by octet there is one verdict: more is needed, a header of usable addresses, or a refusal
    for good.
    """
    end: int | None = None
    refused = False
    for length in {*range(min(len(octets), 60)), len(octets) // 2, len(octets)}:
        try:
            found = proxy_header.end_of(octets[:length])
        except proxy_header.BadHeader as error:
            assert str(error).isprintable()
            refused = True
            continue
        assert found is None or (not refused and found in (end, found) and 0 < found <= length)
        end = end or found
    if not end:
        assert refused or len(octets) < proxy_header.MAX_HEADER_OCTETS
        return
    assert not refused and end <= proxy_header.MAX_HEADER_OCTETS
    try:
        header = proxy_header.parse(octets[:end])
    except proxy_header.BadHeader as error:
        assert str(error).isprintable()
        return
    check_header(header)


def check_header(header: proxy_header.Header) -> None:
    """Addresses in their one spelling, ports that are some, and a TLS version fit for a log."""
    assert (header.peer is None) == (header.local is None)
    for address in (header.peer, header.local):
        if address is not None:
            assert str(ipaddress.ip_address(address[0])) == address[0] and 0 <= address[1] <= 65535
            assert not address[0].lower().startswith("::ffff:") or "." not in address[0]
    assert header.tls is None or (
        header.tls.isprintable() and header.tls.isascii() and 0 < len(header.tls) <= 32
    )


def announced(octets: bytes) -> None:
    """What a proxy says with XCLIENT is refused, or an address and a port that there can be."""
    try:
        header = xclient.parse(octets, ("198.51.100.1", 110))
    except xclient.BadXclient:
        return
    assert header.peer and header.local
    check_header(header)


def request(octets: bytes) -> None:
    """
    What asks for metrics is refused with a status, needs more, or is a GET or HEAD for a printable
    path.
    """
    try:
        whole = http.is_whole(octets)
        assert whole or len(octets) < http.MAX_REQUEST_OCTETS
        asked = http.parse(octets)
    except http.Refused as refused:
        assert refused.answer.status in http.REASONS
        assert http.encode(refused.answer, True).startswith(b"HTTP/1.1 %d " % refused.answer.status)
        return
    assert (asked.path.isascii() and asked.accept.isascii()) or "\ufffd" in asked.accept
    assert " " not in asked.path and "?" not in asked.path


def _valid_tally(kind: int) -> bytes:
    numbers = [0] * tally.COUNT
    numbers[tally.KIND], numbers[tally.PID] = kind, 4711
    numbers[tally.LAYOUT] = tally.layout(tally.KINDS[kind]) if kind else 0
    return tally.NUMBERS.pack(*numbers)


_TALLIES = [_valid_tally(kind) for kind in range(len(tally.KINDS))]


def metrics(octets: bytes) -> None:
    """Whatever a process has put into its tally, every metric there is comes out, and none else."""
    kind, octets = (octets[:1] or b"\0")[0], octets[1:]
    page = patched(_TALLIES[kind % len(_TALLIES)], octets) if kind < 0xF0 else octets
    fd = os.memfd_create("tally")
    try:
        os.write(fd, page)
        reader = exposition.Reader()
        reader.add(fd)
        collected = list(exposition.Metrics(reader, {}).collect())
        assert len(collected) == len(exposition.METRICS)
        for family in collected:
            assert all(sample.value >= 0 for sample in family.samples)
        assert len(list(exposition.answered(reader))) <= 1
    finally:
        os.close(fd)


_FRAMES = [messages.encode(kind, **_fields(kind)) for kind in FRAMES]
_VERDICTS = [
    checker.encode(Refused("AUTH", "wrong_password", "pam", "detail")),
    b'["joe",1000,1000,[1000,4],"/home/joe","/home/joe/Maildir","pam",0]',
]
_GET = b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain;version=0.0.4;q=0.5\r\n\r\n"

TARGETS = (
    target(frame, _FRAMES),
    target(
        maildrop_key, [each for each in _FRAMES if messages.kind_of(each) == messages.SERVE] + [b"\x02\x04"]
    ),
    target(verdict, _VERDICTS),
    target(proxy, [octets for octets in GOOD.values() if len(octets) < 500]),
    target(
        announced,
        [
            b"ADDR=192.0.2.7 PORT=4711 DESTADDR=::1 DESTPORT=995 SESSION=x TTL=3 CLIENT-TRANSPORT=TLS",
            b"ADDR=::1",
        ],
    ),
    target(request, [_GET, b"HEAD /health HTTP/1.0\r\n\r\n", _GET[:30]]),
    target(metrics, [b"\1\0\0\0", b"\2" + b"\x29\0\xff" * 4, b"\3", b"\xff" + _TALLIES[1][:64]], examples=40),
)

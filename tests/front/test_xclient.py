"""What a proxy may say of its client with XCLIENT, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.front.xclient import BadXclient, parse
from gpop.pop3.authorization import Authorization, greeting
from gpop.pop3.decisions import AnnouncedClient, Login, Reply
from gpop.pop3.wire import LineReader

LOCAL = ("198.51.100.1", 110)
FROM_DOVECOT = (
    b"ADDR=2001:db8::7 PORT=4711 DESTADDR=2001:DB8::1 DESTPORT=995 SESSION=abc/def+1 TTL=4 "
    b"CLIENT-TRANSPORT=TLS DESTNAME=mail.example.org FORWARD=Zm9vPWJhcg=="
)


def facts(arguments: bytes) -> tuple:
    header = parse(arguments, LOCAL)
    return header.peer, header.local, header.tls


def test_what_dovecots_proxy_sends():
    """Both ends, TLS; what gpop has no use for is ignored."""
    assert facts(FROM_DOVECOT) == (("2001:db8::7", 4711), ("2001:db8::1", 995), "TLS")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (b"ADDR=192.0.2.7", (("192.0.2.7", 0), LOCAL, None)),
        (b"addr=192.0.2.7 port=1", (("192.0.2.7", 1), LOCAL, None)),
        (b"PORT=1  ADDR=::ffff:192.0.2.7 ", (("192.0.2.7", 1), LOCAL, None)),
        (b"ADDR=192.0.2.7 DESTPORT=995", (("192.0.2.7", 0), ("198.51.100.1", 995), None)),
        (b"ADDR=192.0.2.7 CLIENT-TRANSPORT=insecure", (("192.0.2.7", 0), LOCAL, None)),
        (b"ADDR=192.0.2.7 LOGIN=anna PROTO=POP3 \xff=\x00 x", (("192.0.2.7", 0), LOCAL, None)),
    ],
)
def test_what_is_not_said_stays(arguments, expected):
    """Only ADDR is needed."""
    assert facts(arguments) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        b"",
        b"PORT=1",
        b"ADDR=",
        b"ADDR=[UNAVAILABLE]",
        b"ADDR=IPV6:::1",
        b"ADDR=fe80::1%eth0",
        b"ADDR=192.0.2.7 PORT=65536",
        b"ADDR=192.0.2.7 PORT=",
        b"ADDR=192.0.2.7 PORT=01",
        b"ADDR=192.0.2.7 DESTADDR=localhost",
        b"ADDR=192.0.2.7 DESTPORT=-1",
        b"ADDR=\xb9\xb2.0.2.7",
    ],
)
def test_what_is_not_usable_is_refused(arguments):
    """A proxy that does not say for whom it speaks must notice."""
    with pytest.raises(BadXclient):
        parse(arguments, LOCAL)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"ADDR=192.0.2.7 " + tail))
def test_any_arguments_are_taken_or_refused(arguments):
    """Nothing else can come of them."""
    try:
        header = parse(arguments, LOCAL)
    except BadXclient:
        return
    assert header.peer and header.local


def test_xclient_is_a_command_before_a_name_is_given():
    """Not after USER, where it would change under whom the penalties of a login hang."""
    authorization = Authorization(xclient=True)
    assert authorization.handle(b"XCLIENT ADDR=192.0.2.7") == AnnouncedClient(b"ADDR=192.0.2.7")
    assert authorization.handle(b"xclient PORT=1") == AnnouncedClient(b"PORT=1")
    authorization.handle(b"USER anna")
    assert authorization.handle(b"XCLIENT ADDR=192.0.2.8").octets == b"-ERR Unknown command\r\n"
    assert authorization.handle(b"PASS secret") == Login(b"anna", b"secret", "USER")


def test_xclient_is_unknown_to_strangers():
    """The same words as for any unknown command, and the same capability list."""
    stranger, trusted = Authorization(), Authorization(xclient=True)
    unknown = stranger.handle(b"XYZZY")
    assert isinstance(unknown, Reply)
    assert stranger.handle(b"XCLIENT ADDR=192.0.2.7") == unknown
    assert stranger.handle(b"CAPA") == trusted.handle(b"CAPA")


def test_a_sasl_response_is_no_xclient():
    """Whatever it begins with."""
    authorization = Authorization(xclient=True)
    authorization.handle(b"AUTH PLAIN")
    assert authorization.handle(b"XCLIENT ADDR=192.0.2.7").octets.startswith(b"-ERR")


def test_the_greeting_tells_a_proxy():
    """As Dovecot's does, which is what its proxy looks for."""
    assert greeting("a.example ready", xclient=True) == b"+OK [XCLIENT] a.example ready\r\n"


def test_a_line_of_a_proxy_may_be_long():
    """It may carry what was forwarded from elsewhere."""
    line = b"XCLIENT ADDR=192.0.2.7 FORWARD=" + b"A" * 1000
    reader = LineReader()
    reader.feed(line + b"\r\n")
    assert reader.next_line() == line

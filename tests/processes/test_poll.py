"""The usual poll is answered on a short way; what a client gets is what the long way would have said."""

from __future__ import annotations

import socket

import pytest

from gpop.session import poll
from tests.serving import PASSWORD

LOGIN = f"USER user0\r\nPASS {PASSWORD}\r\n".encode()
MESSAGES = [b"Subject: %d\n\n%b" % (number, b"line\n" * number) for number in range(5)]
# What ends the short way at once, and says nothing of its own that the comparison would see.
LONG_WAY = b"RSET\r\n"

SCRIPTS = {
    "the poll": b"STAT\r\nUIDL\r\nQUIT\r\n",
    "everything": b"STAT\r\nLIST\r\nUIDL\r\nNOOP\r\nSTAT\r\nQUIT\r\n",
    "bare line feeds": b"STAT\nUIDL\nLIST\nQUIT\n",
    "lower case": b"stat\r\nuidl\r\nSTAT\r\nquit\r\n",
    "spaces": b"STAT \r\nUIDL  \r\nQUIT \r\n",
    "one message": b"UIDL 2\r\nLIST 2\r\nSTAT\r\nQUIT\r\n",
    "nonsense in between": b"STAT\r\nXYZZY\r\nUIDL x\r\n\r\nSTAT\r\nQUIT\r\n",
    "a long line": b"STAT\r\n" + b"x" * 600 + b"\r\nUIDL\r\nQUIT\r\n",
    "a NUL": b"STAT\r\nST\0AT\r\nQUIT\r\n",
    "CRs": b"STAT\r\r\nUIDL\r\nQUIT\r\n",
    "a mark": b"STAT\r\nDELE 1\r\nSTAT\r\nLIST\r\nUIDL\r\nRSET\r\nUIDL\r\nQUIT\r\n",
    "a message": b"UIDL\r\nRETR 3\r\nTOP 1 0\r\nUIDL\r\nQUIT\r\n",
    "beyond QUIT": b"STAT\r\nQUIT\r\nSTAT\r\n",
}


@pytest.fixture
def server(lasting_server):
    for message in MESSAGES:
        lasting_server.site.deliver(message)
    assert spoken(lasting_server, SCRIPTS["a message"])  # cached; nothing in new/ that RETR would move
    spoken(lasting_server, SCRIPTS["the poll"])
    return lasting_server


def spoken(server, script, piece=None):
    """All that the server says to a script, sent at once or in pieces, and logged, after the login."""
    before = len(server.events("session_closed"))
    with server.connect() as client:
        client.send(LOGIN)
        for start in range(0, len(script), piece or len(script)):
            client.send(script[start : start + (piece or len(script))])
        said = client.rest().partition(b"+OK maildrop locked and ready\r\n")[2]
    server.wait_for_event("session_closed", before + 1)
    return said


@pytest.mark.parametrize("name", SCRIPTS)
def test_both_ways_say_the_same(server, name):
    """Whole and octet by octet; the log calls it a hit either way, and the counts agree."""
    script = SCRIPTS[name]
    long_way = spoken(server, LONG_WAY + script)
    reset, _, expected = long_way.partition(b"\r\n")
    assert reset.startswith(b"+OK") and expected
    assert spoken(server, script) == expected
    assert spoken(server, script, piece=1) == expected
    events = server.events("session_closed")[-3:]
    assert {event["cache"] for event in events} == {"hit"}
    assert len({(event["messages"], event["octets"], event["close_reason"]) for event in events}) == 1


def test_a_client_that_leaves_in_the_middle(server):
    """Nothing is said to have been quit, and the maildrop is free for the next session at once."""
    before = len(server.events("session_closed"))
    with server.connect() as client:
        client.send(LOGIN + b"STAT\r\nUIDL\r\nQUI")
        client.socket.shutdown(socket.SHUT_WR)
        client.rest()
    server.wait_for_event("session_closed", before + 1)
    assert server.events("session_closed")[-1]["close_reason"] == "disconnect"
    assert spoken(server, SCRIPTS["the poll"]).endswith(b"+OK bye\r\n")


def test_a_long_response_is_the_same_as_well(server):
    """One that is sent from the file and not from memory, in the middle of others that are."""
    for number in range(300):
        server.site.deliver(b"Subject: %d\n\nmany\n" % number)
    spoken(server, SCRIPTS["the poll"])
    script = SCRIPTS["everything"]
    reset, _, expected = spoken(server, LONG_WAY + script).partition(b"\r\n")
    assert reset.startswith(b"+OK") and expected.count(b"\r\n") > 600
    listing = expected[expected.index(b"+OK unique-id") :]
    assert listing.index(b"\r\n.\r\n") > poll.MAX_BATCHED_OCTETS
    assert spoken(server, script) == expected
    assert server.events("session_closed")[-1]["cache"] == "hit"

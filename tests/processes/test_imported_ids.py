"""Unique-ids of another server, with real processes: jailed, logged, and never given up for default ones."""

from __future__ import annotations

import os

import pytest

from gpop.maildrop import importfile
from gpop.maildrop.imported import ImportedId
from tests.serving import ROOT

MESSAGE = b"Subject: one\n\nbody\n"


def give(site, ids):
    """Import as `gpop uidl import` does; the file becomes the mail user's, who runs that."""
    dir_fd = os.open(site.maildir(), os.O_RDONLY | os.O_DIRECTORY)
    importfile.add(dir_fd, {base.encode(): ImportedId(*one) for base, one in ids.items()})
    os.close(dir_fd)
    site.own(site.maildir() / importfile.IMPORT_NAME, "user0")


def uidl(client):
    return [line.split(b" ")[1] for line in client.uidl()[1]]


@pytest.fixture
def server(make_server):
    """A server with three messages, the last two of which have ids from elsewhere."""
    made = make_server()
    made.bases = [made.site.deliver(MESSAGE, base=f"170000000{number}.M1.host") for number in range(3)]
    give(made.site, {made.bases[1]: (b"old/2", 2), made.bases[2]: (b"old-3", 1)})
    return made


def test_they_are_served_retrieved_and_removed(server):
    """In the other server's order, before what that never saw; and polled without a look at the file."""
    expected = [b"old-3", b"old/2", server.bases[0].encode()]
    client = server.pop()
    assert uidl(client) == expected
    assert client.uidl(2).endswith(b" 2 old/2")
    assert client.retr(1)[1] == client.retr(3)[1] == MESSAGE.splitlines()
    client.dele(1)
    client.quit()
    assert server.wait_for_event("session_closed")["removed"] == 1
    for count in (2, 3, 4):  # the folders, then perhaps a racy cache, then a hit
        client = server.pop()
        assert uidl(client) == expected[1:]
        client.quit()
        last = server.wait_for_event("session_closed", count)
    assert last["cache"] == "hit"
    assert not server.faults() and not server.events("unique_ids_changed")


def test_a_damaged_file_is_a_fault(server):
    """The client is told to come back, not to download everything again; one line says why."""
    server.pop().quit()
    path = server.site.maildir() / importfile.IMPORT_NAME
    path.write_bytes(path.read_bytes()[:-3])
    with server.connect() as dialogue:
        dialogue.ask("USER user0")
        assert dialogue.ask("PASS open sesame").startswith(b"-ERR [SYS/TEMP]")
    closed = server.wait_for_event("session_closed", 2)
    assert (closed["close_reason"], closed["level"]) == ("unavailable", "error")
    assert ".unique-ids can't be used: line 3: 1 lines where 2 were written" in closed["fault"]


def test_the_alarm_is_one_event(server):
    """A maildrop that lost its import is served, and the operator is told before the users call."""
    server.pop().quit()
    (server.site.maildir() / importfile.IMPORT_NAME).unlink()
    for _ in range(2):
        client = server.pop()
        assert uidl(client) == sorted(base.encode() for base in server.bases)
        client.quit()
    login_id = server.wait_for_event("session_closed", 2)["login_id"]
    server.wait_for_event("session_closed", 3)
    (event,) = server.events("unique_ids_changed")
    assert event["level"] == "error" and event["login_id"] == login_id
    assert event["detail"] == "changed=2 renamed=0 gone=2 messages=3 reason=import_changed"


@pytest.mark.skipif(not ROOT, reason="without root there is nobody else whom a file could belong to")
def test_somebody_else_s_file(server):
    """Not believed, and not ignored."""
    os.chown(server.site.maildir() / importfile.IMPORT_NAME, 0, 0)
    with server.connect() as dialogue:
        dialogue.ask("USER user0")
        assert dialogue.ask("PASS open sesame").startswith(b"-ERR [SYS/TEMP]")


def test_an_import_that_goes_within_a_session_is_no_fault(server):
    """Nothing shows any more whose id it is: [SYS/TEMP] for that message, and the session goes on."""
    with server.login() as dialogue:
        (server.site.maildir() / importfile.IMPORT_NAME).unlink()
        for command in ("RETR 1", "TOP 1 0", "RETR 2"):
            assert dialogue.ask(command).startswith(b"-ERR [SYS/TEMP]")
        assert dialogue.ask("LIST 3").startswith(b"+OK")
        assert dialogue.ask("DELE 3").startswith(b"+OK")
        assert dialogue.ask("QUIT").startswith(b"+OK")
    assert server.wait_for_event("session_closed")["removed"] == 1
    assert not server.faults()
    notes = [event["detail"] for event in server.events("message_unreadable")]
    assert notes == ["message=1 reason=changed", "message=2 reason=changed"]

"""session.expire_retrieved_days, with real processes: what is announced is what happens."""

from __future__ import annotations

import os

import pytest

from tests.serving import ROOT, wait_until

MESSAGE = b"Subject: one\n\nbody\n"
RECORD = ".gpop-retrieved"


@pytest.fixture
def expiring(make_server):
    """A function that starts gpop with a retention and three messages; returns it and their names."""

    def make(days):
        server = make_server(session__expire_retrieved_days=days)
        return server, [server.site.deliver(MESSAGE) for _ in range(3)]

    return make


def closed(server, count=1):
    return server.wait_for_event("session_closed", count)


def expire_lines(dialogue):
    dialogue.ask("CAPA")
    return [line for line in dialogue.lines() if line.startswith(b"EXPIRE")]


@pytest.mark.parametrize(("days", "announced"), [(-1, b"EXPIRE NEVER"), (0, b"EXPIRE 0"), (30, b"EXPIRE 30")])
def test_capa_announces_what_happens(make_server, days, announced):
    """The same before and after the login (RFC 2449 section 6.7)."""
    server = make_server(session__expire_retrieved_days=days)
    with server.connect() as dialogue:
        assert expire_lines(dialogue) == [announced]
    with server.login() as dialogue:
        assert expire_lines(dialogue) == [announced]


def test_expire_0_removes_what_was_retrieved_at_quit(expiring):
    """RETR counts and TOP does not; the log tells it from what the client deleted."""
    server, names = expiring(0)
    client = server.pop()
    client.retr(1)
    client.top(2, 100)
    client.dele(3)
    assert server.site.files() == sorted(names)
    assert client.quit() == b"+OK bye"
    assert server.site.files() == [names[1]]
    line = closed(server)
    counts = {key: line[key] for key in ("retr", "top", "marked", "expired", "removed", "not_removed")}
    assert counts == {"retr": 1, "top": 1, "marked": 1, "expired": 1, "removed": 2, "not_removed": 0}


def test_what_the_client_deleted_itself_did_not_expire(expiring):
    """Each message is counted once, under who wanted it gone."""
    server, names = expiring(0)
    client = server.pop()
    client.retr(1)
    client.dele(1)
    client.quit()
    assert server.site.files() == names[1:]
    line = closed(server)
    assert (line["marked"], line["expired"], line["removed"]) == (1, 0, 1)


@pytest.mark.parametrize("ending", ["disconnect", "kill"])
def test_without_a_quit_nothing_expires(expiring, ending):
    """As with DELE: who did not come to QUIT may not have the message."""
    server, names = expiring(0)
    dialogue = server.login()
    dialogue.ask("RETR 1")
    dialogue.lines()
    if ending == "kill":
        (pid,) = server.pids("session")
        os.kill(pid, 9)
        server.wait_for_event("session_died")
    dialogue.close()
    wait_until(lambda: not server.pids("session"))
    assert server.site.files() == sorted(names)


def test_a_poll_changes_nothing(expiring):
    """STAT, UIDL and LIST retrieve nothing, by the short way and by the long one; the cache stays a hit."""
    server, _ = expiring(30)
    client = server.pop()
    client.retr(1)
    client.quit()
    record = server.site.maildir() / RECORD
    before = record.read_bytes(), os.stat(record).st_ino, os.stat(record).st_mtime_ns
    # The first lists anew because the message has moved to cur/.
    for long_way in (True, False, True):
        client = server.pop()
        client.stat()
        client.uidl()
        if long_way:
            client.rset()
        client.quit()
    assert closed(server, 4)["cache"] == "hit"
    assert (record.read_bytes(), os.stat(record).st_ino, os.stat(record).st_mtime_ns) == before
    assert len(server.site.files()) == 3


def test_retrievals_are_remembered(expiring):
    """By unique-id, those of RETR only; nothing is removed before its time."""
    server, names = expiring(30)
    for number in (1, 2):
        client = server.pop()
        client.retr(number)
        client.top(3, 0)
        client.quit()
    lines = (server.site.maildir() / RECORD).read_text().splitlines()
    assert sorted(line.split()[1] for line in lines[1:]) == sorted(names[:2])
    assert len(server.site.files()) == 3
    closed(server, 2)
    assert [(line["expired"], line["removed"]) for line in server.events("session_closed")] == [(0, 0)] * 2
    if ROOT:
        assert (server.site.maildir() / RECORD).stat().st_uid == server.site.uid("user0")
    assert server.faults() == []


def test_a_record_that_can_not_be_written_keeps_mail(expiring):
    """It is logged, QUIT is answered as ever, and the message stays."""
    server, _ = expiring(30)
    record = server.site.maildir() / RECORD
    record.mkdir()
    server.site.own(record, "user0")
    client = server.pop()
    client.retr(1)
    assert client.quit() == b"+OK bye"
    assert len(server.site.files()) == 3
    assert "EPERM" in server.wait_for_event("retention_failed")["detail"]
    assert server.faults() == []


def test_by_default_nothing_is_remembered(server):
    """Nobody asked for it: no file, and what was retrieved stays."""
    server.site.deliver(MESSAGE)
    client = server.pop()
    client.retr(1)
    client.quit()
    assert not (server.site.maildir() / RECORD).exists()
    assert len(server.site.files()) == 1
    assert closed(server)["expired"] == 0

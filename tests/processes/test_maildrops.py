"""
Maildrops as users have them, seen through the whole server: odd names, odd files, other programs at work.

What a client is told must agree with itself (LIST, UIDL, STAT, RETR) and with the next
session, and what QUIT does to the Maildir is exactly what was asked for.
"""

from __future__ import annotations

import os
import poplib
import signal
import socket
import struct
from contextlib import contextmanager, suppress

import pytest

from tests.dialogue import TESTS
from tests.maildrop.store import expected_id, expected_twin_id
from tests.pop3 import reference
from tests.serving import PASSWORD, wait_until

MESSAGE = b"Subject: one\n\nbody\n.dot\n"
OCTETS = reference.octets_on_wire(MESSAGE)
CORPUS = sorted((TESTS / "corpus").glob("*.eml"))
ROUNDS = 200


@pytest.fixture
def server(lasting_server):
    """The module's gpop, its maildrop empty; no test may lead to a fault."""
    return lasting_server


# What a client does


def response(dialogue, command):
    """The octets of a multi-line response behind its status line, terminator included."""
    status = dialogue.ask(command)
    assert status.startswith(b"+OK"), status
    received = b""
    while not received.endswith(b"\r\n.\r\n") and received != b".\r\n":
        line = dialogue.file.readline()
        assert line, "the connection ended within a multi-line response"
        received += line
    return received


def retrieve(dialogue, number):
    """A message as the client has it: on the wire, with byte-stuffing and terminator undone."""
    return reference.decode(response(dialogue, f"RETR {number}"))


def as_received(message):
    """What a client has in hand after it retrieved a message with these octets."""
    return reference.decode(reference.encode(message))


def listing(dialogue):
    """Unique-ids and octets in message order, all ways to ask compared."""
    scan = [tuple(map(int, line.split())) for line in response(dialogue, "LIST").splitlines()[:-1]]
    ids = [line.split(b" ") for line in response(dialogue, "UIDL").splitlines()[:-1]]
    assert [number for number, _ in scan] == [int(number) for number, _ in ids]
    for (number, octets), (_, unique_id) in zip(scan, ids, strict=True):
        assert dialogue.ask(f"LIST {number}") == b"+OK %d %d" % (number, octets)
        assert dialogue.ask(f"UIDL {number}") == b"+OK %d %b" % (number, unique_id)
    assert dialogue.ask("STAT") == b"+OK %d %d" % (len(scan), sum(octets for _, octets in scan))
    return [(unique_id, octets) for (_, octets), (_, unique_id) in zip(scan, ids, strict=True)]


def quit_session(server, dialogue):
    """QUIT: exactly one reply, then the end; returns it when the session is over and logged."""
    sessions = len(server.events("session_closed"))
    answer = dialogue.ask("QUIT")
    assert dialogue.rest() == b""
    dialogue.close()
    wait_until(lambda: len(server.events("session_closed")) > sessions)
    return answer


def poll(server):
    """What a client that only looks is told, and how the statcache did."""
    dialogue = server.login()
    listed = listing(dialogue)
    assert quit_session(server, dialogue).startswith(b"+OK")
    return listed, server.events("session_closed")[-1]["cache"]


def poll_until_hit(server):
    """Poll until the statcache is trusted: at once, or a second later if stamps are that coarse."""
    polls = []

    def is_hit():
        polls.append(poll(server))
        return polls[-1][1] == "hit"

    wait_until(is_hit)
    assert all(listed == polls[-1][0] for listed, _ in polls)
    return polls[-1][0]


# What other programs do


def names(site, folder):
    """The names in a folder, as octets."""
    return sorted(os.listdir(os.fsencode(site.maildir() / folder)))


def path_of(site, name, folder="new"):
    """Where a message lies."""
    return site.maildir() / folder / name


def noted(server, event, since=0):
    """The notes of sessions of one kind, from the `since`th on."""
    return [each["detail"] for each in server.events(event)[since:]]


# Octets


def test_every_corpus_message_has_the_octets_that_list_says(server):
    """RETR sends exactly as many octets as LIST says, on a rebuild, on a hit, and after the move to cur/."""
    site = server.site
    for number, message in enumerate(CORPUS):
        site.deliver(message.read_bytes(), base=f"{1793600000 + number}.M1P1.{message.stem}")
    for outcome in ("rebuild", "refresh", "hit"):
        if outcome == "hit":
            poll_until_hit(server)
        dialogue = server.login()
        listed = listing(dialogue)
        for number, (message, (_, octets)) in enumerate(zip(CORPUS, listed, strict=True), 1):
            received = response(dialogue, f"RETR {number}")
            assert received == message.with_suffix(".wire").read_bytes(), message.stem
            assert len(reference.decode(received)) == octets, message.stem
        assert quit_session(server, dialogue).startswith(b"+OK")
        assert server.events("session_closed")[-1]["cache"] == outcome
    assert noted(server, "size_corrected") == []
    assert names(site, "new") == [] and len(names(site, "cur")) == len(CORPUS)


def test_a_size_in_a_name_that_lies_is_corrected(server):
    """The first RETR sends the true octets, the next session lists them; one event says so."""
    base = f"1793600001.M1P1.mx,S={len(MESSAGE)},W={OCTETS + 3}"
    server.site.deliver(MESSAGE, base=base)
    dialogue = server.login()
    assert listing(dialogue) == [(base.encode(), OCTETS + 3)]
    assert len(retrieve(dialogue, 1)) == OCTETS
    assert listing(dialogue) == [(base.encode(), OCTETS + 3)], "what LIST said is not changed in a session"
    quit_session(server, dialogue)
    for _ in range(2):
        dialogue = server.login()
        assert listing(dialogue) == [(base.encode(), OCTETS)]
        assert len(retrieve(dialogue, 1)) == OCTETS
        quit_session(server, dialogue)
    assert noted(server, "size_corrected") == [f"message=1 listed={OCTETS + 3} octets={OCTETS}"]


# Rewritten messages

# Nearly as long as the other: by its size alone it could have that one's form.
PLAIN = b"Subject: plain\n\nnothing to see here, and that for a while\n"
REWRITTEN = b"Subject: rewritten\n\n.\n.hidden\n..\nand more\n"


def rewrite(site, path, how):
    """What filters do to a message: another file under its name, twice; or other octets in its file."""
    if how == "in place":
        with open(path, "r+b") as file:
            file.write(REWRITTEN)
            file.truncate()
        return
    for number in range(2 if how == "renamed over twice" else 1):
        draft = site.maildir() / "tmp" / str(number)
        draft.write_bytes(REWRITTEN)
        site.own(draft, "user0")
        draft.rename(path)


@pytest.mark.parametrize("folder", ["new", "cur"])
@pytest.mark.parametrize("how", ["renamed over", "renamed over twice", "in place"])
def test_a_rewritten_message_does_not_break_the_dialogue(server, how, folder):
    """
    A message with a known form gets lines that begin with a dot: each of them is stuffed, on a hit too.

    The terminator is where the message ends, and the next command gets its own reply. LIST is
    right in the next session: at the latest once the message was retrieved.
    """
    site = server.site
    bases = [site.deliver(PLAIN, folder=folder) for _ in range(3)]
    poll_until_hit(server)
    rewrite(site, path_of(site, bases[1], folder), how)
    site.deliver(PLAIN, folder="cur" if folder == "new" else "new")
    dialogue = server.login()
    for _ in range(2):
        assert response(dialogue, "RETR 2") == reference.encode(REWRITTEN)
        assert response(dialogue, "TOP 2 2") == reference.top(REWRITTEN, 2)
        assert dialogue.ask("NOOP").startswith(b"+OK")
    assert response(dialogue, "RETR 1") == reference.encode(PLAIN)
    quit_session(server, dialogue)
    for _ in range(2):
        dialogue = server.login()
        assert [octets for _, octets in listing(dialogue)][1] == reference.octets_on_wire(REWRITTEN)
        assert response(dialogue, "RETR 2") == reference.encode(REWRITTEN)
        quit_session(server, dialogue)


def test_a_message_rewritten_between_hits(server):
    """In place no folder changes: the session is a hit, what is sent is right, and the cache is corrected."""
    site = server.site
    base = site.deliver(PLAIN, folder="cur")
    poll_until_hit(server)
    rewrite(site, path_of(site, base, "cur"), "in place")
    dialogue = server.login()
    assert response(dialogue, "RETR 1") == reference.encode(REWRITTEN)
    assert dialogue.ask("NOOP").startswith(b"+OK")
    quit_session(server, dialogue)
    assert server.events("session_closed")[-1]["cache"] == "hit"
    assert poll(server) == ([(base.encode(), reference.octets_on_wire(REWRITTEN))], "hit")


# Names

ODD_NAMES = [
    b"1793600001.M1P1.host with space",
    b" ",
    b"1793600002.M1P1.mx:2,S",
    b"1793600003.M1P1.mx:1,whatever:2,RS",
    b":2,",
    b"1793600004.M1P1.h\xc3\xb6st",
    b"1793600005.M1P1.h\xf6st",
    b"1793600006.M1P1.mx\n1793600006.M2P1.mx",
    b"1793600007.M1P1.\r\n.\r\n+OK",
    b"1793600008.M1P1.\x01\x1b[31m\x7f",
    b"1793600009.M1P1." + b"x" * 234,
    b"1793600010.M1P1." + b"y" * 54,
    b"1793600011.M1P1." + b"z" * 55,
    b"no time at all",
    b"-",
    b"~",
    b"%s%n",
    b"\xff\xfe",
    b"1793600012.M1P1.mx,S=,W=x",
]


def test_odd_names(server):
    """Unique-ids of 1 to 70 graphic characters, each message under its own, removed under its own."""
    site = server.site
    for number, name in enumerate(ODD_NAMES):
        base, folder = os.fsdecode(name), "cur" if b":" in name else "new"
        site.deliver(b"Subject: %d\n\nbody\n" % number, base=base, folder=folder)
    subjects = {expected_id(name.partition(b":")[0]): number for number, name in enumerate(ODD_NAMES)}
    first, _ = poll(server)
    assert first == poll_until_hit(server)
    assert {unique_id for unique_id, _ in first} == subjects.keys()
    dialogue = server.login()
    for number, (unique_id, octets) in enumerate(first, 1):
        received = retrieve(dialogue, number)
        assert received.startswith(b"Subject: %d\r\n" % subjects[unique_id])
        assert len(received) == octets
    quit_session(server, dialogue)
    assert (first, "refresh") == poll(server), "what was retrieved has moved to cur/ and is what it was"
    dialogue = server.login()
    for number in range(1, len(first) + 1, 2):
        assert dialogue.ask(f"DELE {number}").startswith(b"+OK")
    assert quit_session(server, dialogue).startswith(b"+OK")
    assert poll(server)[0] == first[1::2]


def test_twins_are_told_apart(server):
    """Two files with one base name: two unique-ids, the same in every session, each with its own octets."""
    site, base, other = server.site, "1793600001.M1P1.mx", b"Subject: other\n\n"
    site.deliver(MESSAGE, base=base)
    site.deliver(other, base=base + ":2,S", folder="cur")
    contents = {expected_twin_id(base.encode(), octets): octets for octets in (MESSAGE, other)}
    listed, _ = poll(server)
    assert {unique_id for unique_id, _ in listed} == contents.keys()
    dialogue = server.login()
    assert listing(dialogue) == listed
    for number, (unique_id, octets) in enumerate(listed, 1):
        received = retrieve(dialogue, number)
        assert received == as_received(contents[unique_id])
        assert len(received) == octets
    dialogue.ask("DELE 1")
    assert quit_session(server, dialogue).startswith(b"+OK")
    del contents[listed[0][0]]
    dialogue = server.login()
    assert len(listing(dialogue)) == 1
    assert [retrieve(dialogue, 1)] == [as_received(octets) for octets in contents.values()]
    quit_session(server, dialogue)


# What is no message


def test_what_is_no_message_is_left_alone(server):
    """Links, FIFOs, directories and dot files are not listed, hide nothing, and survive every QUIT."""
    site = server.site
    secret = site.path / "secret"
    secret.write_bytes(b"Subject: somebody else's\n\n")
    for folder in ("new", "cur"):
        place = site.maildir() / folder
        (place / "1793600000.link").symlink_to(secret)
        (place / "1793600001.dangling").symlink_to("nowhere")
        (place / "1793600002.loop").symlink_to("1793600002.loop")
        os.mkfifo(place / "1793600003.fifo")
        (place / "1793600004.directory").mkdir()
        (place / ".1793600005.dot").write_bytes(MESSAGE)
        for entry in os.scandir(place):
            site.own(place / entry.name, "user0")
    before = [names(site, folder) for folder in ("new", "cur")]
    base = site.deliver(MESSAGE)
    for _ in range(2):
        assert poll(server)[0] == [(base.encode(), OCTETS)]
    assert set(noted(server, "message_skipped")) == {"folder=cur entries=5", "folder=new entries=5"}
    dialogue = server.login()
    assert len(retrieve(dialogue, 1)) == OCTETS
    dialogue.ask("DELE 1")
    assert quit_session(server, dialogue).startswith(b"+OK")
    assert [names(site, folder) for folder in ("new", "cur")] == before


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_a_message_that_became_something_else_is_not_served(server, kind):
    """Put in a message's place during a session: -ERR, at once, and the session goes on."""
    site = server.site
    first, second = site.deliver(MESSAGE), site.deliver(MESSAGE)
    with server.login() as dialogue:
        path = path_of(site, first)
        path.unlink()
        if kind == "link":
            path.symlink_to("/etc/passwd")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
        site.own(path, "user0")
        for command in ("RETR 1", "TOP 1 0", "RETR 1"):
            assert dialogue.ask(command).startswith(b"-ERR")
        assert len(retrieve(dialogue, 2)) == OCTETS
        assert quit_session(server, dialogue).startswith(b"+OK")
    assert sorted(site.files()) == sorted([first, second + ":2,S"])


def test_an_unreadable_message_stays_listed(server):
    """RETR and TOP say [SYS/PERM], every time, and the log once; the others are served, it can be removed."""
    site, notes = server.site, len(server.events("message_unreadable"))
    unreadable, other = site.deliver(MESSAGE), site.deliver(MESSAGE)
    path_of(site, unreadable).chmod(0)
    for _ in range(2):
        assert [unique_id for unique_id, _ in poll(server)[0]] == [unreadable.encode(), other.encode()]
    dialogue = server.login()
    for command in ("RETR 1", "TOP 1 0", "RETR 1"):
        assert dialogue.ask(command).startswith(b"-ERR [SYS/PERM]")
    assert len(retrieve(dialogue, 2)) == OCTETS
    dialogue.ask("DELE 1")
    assert quit_session(server, dialogue).startswith(b"+OK")
    assert site.files() == [other + ":2,S"]
    wait_until(lambda: len(noted(server, "message_unreadable", notes)) > 0)
    assert noted(server, "message_unreadable", notes) == [f"message=1 reason=EACCES file=new/{unreadable}"]


# Other programs at the same time


def test_messages_renamed_by_others_are_found_again(server):
    """Flags set, moved from new/ to cur/ or back: RETR and DELE still mean the same message."""
    site = server.site
    bases = [site.deliver(b"Subject: %d\n\n" % number) for number in range(4)]
    for base in bases[2:]:
        path_of(site, base).rename(path_of(site, base + ":2,", "cur"))
    dialogue = server.login()
    path_of(site, bases[0]).rename(path_of(site, bases[0] + ":2,S", "cur"))
    path_of(site, bases[1]).rename(path_of(site, bases[1] + ":2,F", "new"))
    path_of(site, bases[2] + ":2,", "cur").rename(path_of(site, bases[2] + ":2,RS", "cur"))
    path_of(site, bases[3] + ":2,", "cur").rename(path_of(site, bases[3]))
    for number in range(4):
        assert retrieve(dialogue, number + 1) == b"Subject: %d\r\n\r\n" % number
    path_of(site, bases[0] + ":2,S", "cur").rename(path_of(site, bases[0] + ":2,FS", "cur"))
    for number in (1, 2, 3):
        assert dialogue.ask(f"DELE {number}").startswith(b"+OK")
    assert quit_session(server, dialogue).startswith(b"+OK")
    assert [name.partition(":")[0] for name in site.files()] == [bases[3]]
    assert [unique_id for unique_id, _ in poll(server)[0]] == [bases[3].encode()]


def test_a_message_removed_by_others_keeps_its_number(server):
    """RETR says -ERR, as often as it is asked; no other number moves; marked, it counts as removed."""
    site = server.site
    bases = [site.deliver(b"Subject: %d\n\n" % number) for number in range(3)]
    dialogue = server.login()
    before = listing(dialogue)
    path_of(site, bases[1]).unlink()
    for _ in range(3):
        assert dialogue.ask("RETR 2").startswith(b"-ERR")
        assert dialogue.ask("TOP 2 0").startswith(b"-ERR")
    assert listing(dialogue) == before
    assert retrieve(dialogue, 3) == b"Subject: 2\r\n\r\n"
    assert dialogue.ask("DELE 2").startswith(b"+OK")
    assert quit_session(server, dialogue).startswith(b"+OK")
    assert [unique_id for unique_id, _ in poll(server)[0]] == [bases[0].encode(), bases[2].encode()]


def test_a_whole_maildrop_emptied_by_others(server):
    """Another client removed everything: every RETR is an error, QUIT is not."""
    site = server.site
    bases = [site.deliver(MESSAGE) for _ in range(5)]
    dialogue = server.login()
    for base in bases:
        path_of(site, base).unlink()
    for number in range(1, 6):
        assert dialogue.ask(f"RETR {number}").startswith(b"-ERR")
        assert dialogue.ask(f"DELE {number}").startswith(b"+OK")
    assert quit_session(server, dialogue).startswith(b"+OK")
    assert poll(server)[0] == []


def test_unique_ids_stay_though_no_session_reached_update(server):
    """RFC 1939 §7: a client that breaks off is told the same ids the next time, whatever it retrieved."""
    for _ in range(3):
        server.site.deliver(MESSAGE)
    seen = []
    for _ in range(3):
        with server.login() as dialogue:
            seen.append(listing(dialogue))
            retrieve(dialogue, 2)
            dialogue.ask("DELE 3")
        wait_until(lambda: not server.pids("session"))
    assert seen[0] == seen[1] == seen[2] == poll(server)[0]


def test_no_delivery_is_missed_and_no_poll_is_wasted(server):
    """Deliver, poll, poll, 200 times: the first poll sees the new message, and the second is a hit."""
    expected = []
    logged = len(server.events("session_closed"))
    for number in range(ROUNDS):
        base = server.site.deliver(MESSAGE, base=f"{1793600000 + number}.M1P1.mx")
        expected.append(b"%d %b" % (number + 1, base.encode()))
        for _ in range(2):
            client = server.pop()
            assert client.uidl()[1] == expected
            client.quit()
    server.wait_for_event("session_closed", logged + 2 * ROUNDS)
    sessions = sorted(server.events("session_closed")[logged:], key=lambda event: event["login_id"])
    assert {event["cache"] for event in sessions[2::2]} == {"refresh"}
    if _has_fine_stamps(server.site.maildir() / "tmp"):
        # A session that was kept from running for 20 ms at the wrong moment records a folder it can't trust.
        assert [event["cache"] for event in sessions[1::2]].count("hit") >= 0.9 * ROUNDS


def _has_fine_stamps(folder):
    """Whether the file system tells two moments of one second apart."""
    (folder / "stamp").touch()
    return (folder / "stamp").stat().st_ctime_ns % 1_000_000_000 != 0


# What QUIT can and can't do


def test_the_oldest_messages_are_served(make_server):
    """session.max_messages: the oldest first; those behind them come when these have been removed."""
    server = make_server(session__max_messages=3)
    bases = [server.site.deliver(MESSAGE, base=f"{1793600000 + n}.M1P1.mx").encode() for n in range(5)]
    assert poll(server)[0] == [(base, OCTETS) for base in bases[:3]]
    client = server.pop()
    for number in (1, 2, 3):
        client.dele(number)
    client.quit()
    assert poll(server)[0] == [(base, OCTETS) for base in bases[3:]]
    assert server.faults() == []


def test_the_quota_file_is_told(server):
    """maildirsize (Maildir++) gets one line for what QUIT removed, and none where nothing was."""
    site = server.site
    quota = site.maildir() / "maildirsize"
    quota.write_bytes(b"100000S\n2000 3\n")
    site.own(quota, "user0")
    site.deliver(MESSAGE)
    site.deliver(MESSAGE, base="1793600001.M1P1.mx,S=1000")
    site.deliver(MESSAGE)
    client = server.pop()
    client.retr(1)
    client.quit()
    assert quota.read_bytes() == b"100000S\n2000 3\n"
    client = server.pop()
    client.dele(1)
    client.dele(3)
    client.quit()
    assert quota.read_bytes() == b"100000S\n2000 3\n-%d -2\n" % (1000 + len(MESSAGE))


def test_a_message_that_can_not_be_removed_is_told_once(server):
    """QUIT answers -ERR, once; what can be removed is, nothing unmarked is, and the rest is there again."""
    site = server.site
    stuck, kept = site.deliver(MESSAGE), site.deliver(MESSAGE)
    stuck_too = site.deliver(MESSAGE)
    removed = site.deliver(MESSAGE, folder="cur")
    site.deliver(MESSAGE, folder="cur")
    before, _ = poll(server)
    failures = len(server.events("removal_failed"))
    new = site.maildir() / "new"
    new.chmod(0o500)
    dialogue = server.login()
    for number in (1, 3, 4):
        assert dialogue.ask(f"DELE {number}").startswith(b"+OK")
    assert quit_session(server, dialogue) == b"-ERR Some deleted messages not removed"
    assert noted(server, "removal_failed", failures) == ["messages=2 reason=EACCES"]
    closed = server.events("session_closed")[-1]
    assert (closed["marked"], closed["removed"], closed["not_removed"]) == (3, 1, 2)
    assert names(site, "new") == sorted(name.encode() for name in (stuck, kept, stuck_too))
    assert removed not in site.files()
    assert poll(server)[0] == before[:3] + before[4:]
    new.chmod(0o700)
    assert poll(server)[0] == before[:3] + before[4:]


def test_a_retrieved_message_that_can_not_move_stays(server):
    """The move to cur/ never writes over a message, and its failure is no error of QUIT."""
    site, moves = server.site, len(server.events("move_failed"))
    base = site.deliver(MESSAGE)
    dialogue = server.login()
    retrieve(dialogue, 1)
    other = path_of(site, base + ":2,S", "cur")
    other.write_bytes(b"Subject: another message\n\n")
    site.own(other, "user0")
    assert quit_session(server, dialogue).startswith(b"+OK")
    assert path_of(site, base).read_bytes() == MESSAGE
    assert other.read_bytes() == b"Subject: another message\n\n"
    assert noted(server, "move_failed", moves) == ["messages=1 reason=EEXIST"]
    assert len(poll(server)[0]) == 2


def test_a_maildir_that_can_not_be_written_is_served(server):
    """From memory, correct each time, with one event a session; what was not removed is not said to be."""
    site = server.site
    bases = [site.deliver(MESSAGE).encode() for _ in range(3)]
    places = [site.maildir(), site.maildir() / "new", site.maildir() / "cur"]
    notes = len(server.events("cache_unwritable"))
    for place in places:
        place.chmod(0o500)
    for number in (1, 2):
        assert poll(server) == ([(base, OCTETS) for base in bases], "rebuild")
        assert noted(server, "cache_unwritable", notes) == ["reason=EACCES"] * number
    dialogue = server.login()
    assert len(retrieve(dialogue, 2)) == OCTETS
    dialogue.ask("DELE 1")
    assert quit_session(server, dialogue).startswith(b"-ERR")
    for place in places:
        place.chmod(0o700)
    assert poll(server)[0] == [(base, OCTETS) for base in bases]


@contextmanager
def folder_away(site):
    """cur/ is taken away for a while. A session that was a hit has not opened it yet and will not find it."""
    cur, away = site.maildir() / "cur", site.maildir() / "cur.away"
    cur.rename(away)
    yield
    away.rename(cur)


def test_a_folder_that_is_away_is_no_removal(server):
    """What can't be looked for is not taken for removed: QUIT says -ERR, and the message is there again."""
    base = server.site.deliver(MESSAGE, folder="cur")
    before = poll_until_hit(server)
    dialogue = server.login()
    with folder_away(server.site):
        assert dialogue.ask("DELE 1").startswith(b"+OK")
        assert quit_session(server, dialogue).startswith(b"-ERR")
    assert server.site.files() == [base]
    assert poll(server)[0] == before


def test_a_folder_that_is_away_is_said_to_be(make_server):
    """RETR says [SYS/TEMP], and the session ends without UPDATE: whatever came next would be a guess."""
    server = make_server()
    server.site.deliver(MESSAGE, folder="cur")
    server.site.deliver(MESSAGE)
    before = poll_until_hit(server)
    with server.login() as dialogue, folder_away(server.site):
        assert dialogue.ask("DELE 2").startswith(b"+OK")
        assert dialogue.ask("RETR 1").startswith(b"-ERR [SYS/TEMP]")
        assert dialogue.rest() == b""
    assert "cur/" in server.wait_for_event("session_closed", close_reason="unavailable")["fault"]
    assert poll(server)[0] == before


def test_a_maildrop_that_is_unavailable_is_logged_so_though_nobody_waits(make_server):
    """The client has gone by then: the line of the session still is an error that says what is wrong."""
    server = make_server()
    server.site.deliver(MESSAGE, folder="cur")
    server.site.deliver(MESSAGE)
    before = poll_until_hit(server)
    sessions = len(server.events("session_closed"))
    dialogue = server.login()
    with folder_away(server.site):
        dialogue.send(b"RETR 1\r\n")
        dialogue.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        dialogue.close()
        closed = server.wait_for_event("session_closed", sessions + 1)
    assert (closed["close_reason"], closed["level"]) == ("unavailable", "error")
    assert "cur/" in closed["fault"]
    assert poll(server)[0] == before


def test_a_session_that_is_refused_and_kicked_is_no_death(make_server):
    """It has answered [IN-USE] and waits for its client to read that: the signal changes nothing any more."""
    server = make_server(session__lock_wait_s=0)
    with server.login() as first, server.connect() as second:
        (serving,) = server.pids("session")
        second.ask("USER user0")
        assert second.ask(f"PASS {PASSWORD}").startswith(b"-ERR [IN-USE]")
        server.wait_for_event("session_closed", close_reason="in_use")
        for pid in set(server.pids("session")) - {serving}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
        second.close()
        wait_until(lambda: server.pids("session") == [serving])
        assert first.ask("QUIT").startswith(b"+OK")
    assert not server.faults()


def test_a_login_that_fails_holds_no_lock(make_server):
    """After [SYS/TEMP] the next login is not told [IN-USE], even while the first client is still there."""
    server = make_server(session__lock_wait_s=0)
    server.site.deliver(MESSAGE)
    with server.connect() as first:
        with folder_away(server.site):
            first.ask("USER user0")
            assert first.ask(f"PASS {PASSWORD}").startswith(b"-ERR [SYS/TEMP]")
        assert len(poll(server)[0]) == 1


def test_poplib_is_content(server):
    """And a client that is not ours sees the same as all these tests."""
    server.site.deliver(MESSAGE)
    client = server.pop()
    assert client.retr(1) == (b"+OK %d octets" % OCTETS, [b"Subject: one", b"", b"body", b".dot"], OCTETS)
    with pytest.raises(poplib.error_proto):
        client.retr(2)
    client.quit()

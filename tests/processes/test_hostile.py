"""
Peers that mean harm, before a login and after it: they get replies or a close, and everybody else is served.

Every attack is made again until it leaves nothing more behind in memory: the first round may
fill free lists and touch pages that were never used before, but a leak adds to every round.
"""

from __future__ import annotations

import fcntl
import os
import poplib
import random
import socket
import struct
import termios
import threading
import time
from base64 import b64encode
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from gpop.front.connection import MAX_BAD_COMMANDS, MAX_LINES, MAX_REFUSALS
from gpop.pop3.wire import MAX_SASL_OCTETS
from loadtest.hostile.peers import client_hello
from tests.certificates import Authority
from tests.serving import PASSWORD, ROOT, Dialogue, wait_until

MESSAGE = b"Subject: one\n\n" + b"body\n" * 200
# A round of an attack that adds no more than this to any process leaves nothing behind.
GROWTH_KIB = 128
MAX_ROUNDS = 8
# In the middle of one. A front has about 15 MiB of its own, an attacker sends 4 and asks for more.
GROWTH_UNDER_ATTACK_KIB = 2048
# Long enough for a busy machine; who had to wait until an attacker is done would wait longer.
SERVED_WITHIN_S = 5

LOGIN = f"USER user0\r\nPASS {PASSWORD}\r\n".encode()
PLAIN_RESPONSE = b64encode(f"\0user0\0{PASSWORD}".encode())


class Attacker:
    """A connection whose other end may do anything at any time."""

    def __init__(self, server, logged_in=False):
        self.socket = socket.create_connection(("127.0.0.1", server.port), 20)
        self.file = self.socket.makefile("rb")
        self.file.readline()
        if logged_in:
            self.send(LOGIN)
            assert self.replies(2) == [b"+OK", b"+OK"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def send(self, octets):
        """Send what the server takes: it may have closed by now, or take nothing before it is read from."""
        with suppress(OSError):
            self.socket.sendall(octets)

    def replies(self, count):
        """How the next lines begin."""
        return [self.file.readline().partition(b" ")[0].rstrip() for _ in range(count)]

    def half_close(self):
        """Say that nothing more will come."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def wait_until_full(self):
        """Wait until no more of what the server sends can arrive, because nobody has read what did."""
        arrived = [0]

        def nothing_more_arrives():
            arrived.append(struct.unpack("i", fcntl.ioctl(self.socket, termios.FIONREAD, bytes(4)))[0])
            return len(arrived) > 5 and 0 < arrived[-5] == arrived[-1]

        wait_until(nothing_more_arrives)

    def rest(self):
        """All that the server still sends; a reset ends it as well as a close."""
        received = bytearray()
        with suppress(OSError):
            while octets := self.file.read1(65536):
                received += octets
        return bytes(received)

    def reset(self):
        """Close without the courtesies, as a crashed machine does, or a port scanner."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.__exit__()


# Before and after


def lasting_processes(server):
    """The pids of broker, fronts and auth; none without root, who alone may look into them."""
    return [server.process.pid, *server.pids("front"), *server.pids("auth")] if ROOT else []


def own_kib(pid):
    """What a process has in memory that is in no file, also while a fork shares it."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith(("Anonymous:", "Swap:")))


def memory(server):
    """The memory of the processes that last, by pid."""
    return {pid: own_kib(pid) for pid in lasting_processes(server)}


def descriptors(server):
    """How many descriptors they hold, by pid."""
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in lasting_processes(server)}


def growth(server, before):
    """By how many KiB the one that has grown most has; they must be the processes they were before."""
    now = memory(server)
    assert now.keys() == before.keys()
    return max((kib - before[pid] for pid, kib in now.items()), default=0)


def assert_served(server):
    """A client like any other is served, at once."""
    started = time.monotonic()
    client = server.pop()
    assert client.stat() == (1, 1216)
    client.quit()
    assert time.monotonic() - started < SERVED_WITHIN_S


@pytest.fixture
def server(lasting_server):
    """The module's gpop with one message, which has to be there afterwards; the next client is served."""
    message = lasting_server.site.deliver(MESSAGE)
    assert_served(lasting_server)  # by now every process has opened what it opens on first use
    wait_until(lambda: not lasting_server.pids("session"))
    yield lasting_server
    assert_served(lasting_server)
    assert lasting_server.site.files() == [message]


def assert_nothing_stays(server, attack):
    """Attack until that leaves nothing more behind in any process: no session, descriptor or memory."""
    descriptors_before = descriptors(server)
    grown = []
    for _ in range(MAX_ROUNDS):
        memory_before = memory(server)
        attack()
        wait_until(
            lambda: not server.pids("session") and descriptors(server) == descriptors_before,
            what=lambda: f"descriptors {descriptors_before}, not {descriptors(server)}",
        )
        grown.append(growth(server, memory_before))
        if len(grown) > 1 and grown[-1] <= GROWTH_KIB:
            return
    raise AssertionError(f"every round costs memory: {grown} KiB")


# The attacks


def random_octets(server, logged_in):
    """Noise, and noise made of words that mean something."""
    chance = random.Random(1939)
    words = [b"USER", b"AUTH", b"PLAIN", b"CAPA", b"RETR", b"1", b" ", b"\0", b"\r", b"\n", b"\r\n", b"="]
    for _ in range(5):
        with Attacker(server, logged_in) as attacker:
            for _ in range(20):
                attacker.send(chance.randbytes(1000) + b"".join(chance.choices(words, k=500)))
            attacker.half_close()
            received = attacker.rest()
            assert received.isascii() and received.startswith(b"-ERR")


def endless_line(server, logged_in):
    """Megabytes without a line end are one error, and nothing is kept of them."""
    with Attacker(server, logged_in) as attacker:
        before = memory(server)
        attacker.send(b"A" * 4_000_000)
        assert growth(server, before) <= GROWTH_UNDER_ATTACK_KIB
        attacker.send(b"\r\nCAPA\r\n")
        assert attacker.replies(2) == [b"-ERR", b"+OK"]


def nuls(server, logged_in):
    """A NUL ends nothing: a line that holds one is an error as a whole."""
    with Attacker(server, logged_in) as attacker:
        attacker.send(b"CAPA\0\r\n\0\r\nUSER user0\0root\r\n\0CAPA\r\n")
        attacker.send(b"\0" * 1_000_000 + b"\r\n")
        attacker.send(b"AUTH PLAIN " + b64encode(b"\0user0\0" + b"\0" * 1000) + b"\r\n")
        assert attacker.replies(6) == [b"-ERR"] * 6


def unread_answers(server, logged_in):
    """10,000 commands and nobody reads what they bring: gpop waits, and holds one answer."""
    with Attacker(server, logged_in) as attacker:
        before = memory(server)
        attacker.socket.settimeout(0.3)
        attacker.send((b"RETR 1\r\n" if logged_in else b"CAPA\r\n") * 10_000)
        attacker.wait_until_full()
        assert growth(server, before) <= GROWTH_UNDER_ATTACK_KIB


def pipelined_commands(server, logged_in):
    """10,000 commands in one go get 10,000 answers, in order; MAX_LINES before a login, then a close."""
    command, answer, count = b"NOOP\r\n", b"+OK\r\n", 10_000
    if not logged_in:
        command, answer = b"AUTH\r\n", b"+OK mechanisms follow\r\nPLAIN\r\nLOGIN\r\n.\r\n"
        count = MAX_LINES
    with Attacker(server, logged_in) as attacker:
        sending = threading.Thread(target=attacker.send, args=(command * 10_000,))
        sending.start()
        assert attacker.file.read(len(answer) * count) == answer * count
        if not logged_in:
            # The close may be a reset, and the last words lost: there was more to read than anybody reads.
            last_words = attacker.rest()
            assert last_words == b"" or last_words.startswith(b"-ERR [SYS/TEMP]")
        sending.join()


def half_closes(server, logged_in):
    """Who stops sending gets the answers to what was sent, and a close."""
    sent_and_answers = [
        (b"", []),
        (b"CAP", []),
        (b"XYZZY\r\nXYZZY\r\nQUI", [b"-ERR", b"-ERR"]),
        (b"XYZZY\r\nQUIT\r\n", [b"-ERR", b"+OK"]),
    ]
    for octets, answers in sent_and_answers:
        with Attacker(server, logged_in) as attacker:
            attacker.send(octets)
            attacker.half_close()
            assert [line.partition(b" ")[0] for line in attacker.rest().splitlines()] == answers


def resets(server, logged_in):
    """Connections that are reset at once, or with commands that nobody has answered yet."""
    for octets in (b"", b"CAPA\r\n", b"XYZZY\r\n" * 1000, b"QUIT\r\n", b"AUTH PLAIN\r\nAA"):
        for _ in range(5):
            attacker = Attacker(server, logged_in)
            attacker.send(octets)
            attacker.reset()


def huge_auth_lines(server, logged_in):
    """AUTH and the response to a challenge may be long, not endless; each is one error."""
    for octets in (MAX_SASL_OCTETS - 20, MAX_SASL_OCTETS, 1_000_000):
        response = b"A" * octets
        with Attacker(server, logged_in) as attacker:
            attacker.send(b"AUTH PLAIN " + response + b"\r\n")
            assert attacker.replies(1) == [b"-ERR"]
            attacker.send(b"AUTH PLAIN\r\n")
            assert attacker.replies(1) == [b"-ERR" if logged_in else b"+"]
            attacker.send(response + b"\r\nCAPA\r\n")
            assert attacker.replies(2) == [b"-ERR", b"+OK"]


ATTACKS = [
    random_octets,
    endless_line,
    nuls,
    unread_answers,
    pipelined_commands,
    half_closes,
    resets,
    huge_auth_lines,
]


@pytest.mark.parametrize("logged_in", [False, True], ids=["before login", "after login"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_harms_nobody_else(server, attack, logged_in):
    """No fault is logged, no mail is lost, no memory or descriptor is kept, and the next client is served."""
    assert_nothing_stays(server, lambda: attack(server, logged_in))


STEPS = [LOGIN + b"STAT\r\nQUIT\r\n", b"AUTH PLAIN\r\n" + PLAIN_RESPONSE + b"\r\nSTAT\r\nQUIT\r\n"]


@pytest.mark.parametrize("end", [Attacker.__exit__, Attacker.half_close, Attacker.reset])
@pytest.mark.parametrize("dialogue", STEPS, ids=["USER", "AUTH"])
def test_a_connection_may_end_at_every_octet_of_a_login(server, dialogue, end):
    """Closed, half-closed or reset wherever it is: no fault, no trace, no waiting."""

    def attack():
        with ExitStack() as open_attackers:
            for octets in range(len(dialogue) + 1):
                attacker = open_attackers.enter_context(Attacker(server))
                attacker.send(dialogue[:octets])
                end(attacker)

    assert_nothing_stays(server, attack)


def test_refusals_end_a_connection(server):
    """After MAX_REFUSALS wrong passwords, all answered, the peer has to connect again."""
    with Attacker(server) as attacker:
        attacker.send(b"USER user0\r\nPASS wrong\r\n" * (MAX_REFUSALS + 1))
        assert attacker.replies(2 * MAX_REFUSALS) == [b"+OK", b"-ERR"] * MAX_REFUSALS
        assert attacker.rest() == b""


def test_bad_commands_end_a_connection_before_login(server):
    """After MAX_BAD_COMMANDS that are none, all answered, the peer has to connect again."""
    with Attacker(server) as attacker:
        attacker.send(b"CAPA x\r\n" * (MAX_BAD_COMMANDS + 1))
        assert attacker.replies(MAX_BAD_COMMANDS) == [b"-ERR"] * MAX_BAD_COMMANDS
        assert attacker.rest() == b""


def test_a_flood_keeps_nobody_waiting(server):
    """Peers who always have more to say, and take the answers, get their share of a front and no more."""
    stop = threading.Event()

    def flood(attacker):
        while not stop.is_set():
            attacker.send(b"x" * 6000)

    attackers = [Attacker(server) for _ in range(4)]
    threads = [threading.Thread(target=flood, args=(attacker,)) for attacker in attackers]
    threads += [threading.Thread(target=attacker.rest) for attacker in attackers]
    try:
        for thread in threads:
            thread.start()
        for _ in range(5):
            assert_served(server)
    finally:
        stop.set()
        for attacker in attackers:
            attacker.socket.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for attacker in attackers:
            attacker.reset()  # or the front would work on what it has not read yet


def test_a_flood_of_commands_keeps_nobody_waiting(server):
    """Who says all that one may say without a login, again and again, is closed again and again."""
    stop = threading.Event()
    closed = []

    def flood():
        while not stop.is_set():
            with Attacker(server) as attacker:
                attacker.send(b"CAPA\r\n" * 1000)
                closed.append(attacker.rest())

    threads = [threading.Thread(target=flood) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(5):
            assert_served(server)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert max(answers.count(b"+OK") for answers in closed) == MAX_LINES


def test_a_flood_of_wrong_passwords_keeps_nobody_waiting(server):
    """30 peers guess passwords as fast as they are allowed to; who knows one is served beside them."""

    def attack():
        with ExitStack() as open_attackers:
            attackers = [open_attackers.enter_context(Attacker(server)) for _ in range(30)]
            for attacker in attackers:
                attacker.send(b"USER user0\r\nPASS wrong\r\n" * MAX_REFUSALS)
            assert_served(server)
            for attacker in attackers:
                assert attacker.rest().count(b"-ERR [AUTH]") == MAX_REFUSALS

    assert_nothing_stays(server, attack)


def test_odd_names_are_refused_and_logged_escaped(server):
    """Whatever a login name holds: refused as any other is, and no raw control character in the log."""
    names = [b"\x1b[2Jroot", b"a\r\nb", b"\xff\xfe", "\u2028\u202ename".encode(), b"\t", b"x" * 3000, b""]
    logged = len(server.events("login_refused"))
    for name in names:
        with Attacker(server) as attacker:
            attacker.send(b"AUTH PLAIN " + b64encode(b"\0" + name + b"\0password") + b"\r\n")
            assert attacker.file.readline().startswith(b"-ERR [AUTH]")
            attacker.send(b"QUIT\r\n")
            assert attacker.replies(1) == [b"+OK"]
    server.wait_for_event("login_refused", logged + len(names))
    users = [event["user"] for event in server.events("login_refused")[logged:]]
    assert users[:5] == ["\\x1b[2Jroot", "a\\r\\nb", "\\xff\\xfe", "\\u2028\\u202ename", "\\t"]
    assert all(user.isprintable() and len(user) <= 512 for user in users)


def test_many_connections_of_one_peer(server):
    """300 connections, each stuck somewhere else: others are served, and nothing of them stays."""
    beginnings = [b"", b"US", b"USER user0\r\n", b"AUTH PLAIN\r\n", b"x" * 300, b"AUTH PLAIN " + b"A" * 16000]

    def attack():
        with ExitStack() as open_attackers:
            for number in range(300):
                attacker = open_attackers.enter_context(Attacker(server))
                attacker.send(beginnings[number % len(beginnings)])
            assert_served(server)

    assert_nothing_stays(server, attack)


def test_a_front_full_of_sessions_says_so(make_server):
    """At server.max_connections a peer is told [SYS/TEMP]; one line in the log, and room again afterwards."""
    server = make_server(server__max_connections=5, session__lock=False)
    with ExitStack() as open_attackers:
        for _ in range(5):
            open_attackers.enter_context(Attacker(server, logged_in=True))
        for _ in range(3):
            with server.connect() as turned_away:
                assert turned_away.greeting.startswith(b"-ERR [SYS/TEMP]")
                assert turned_away.rest() == b""
    lines = server.events("connections_exhausted")
    assert [line["reason"] for line in lines] == ["turned_away"]

    def has_room():
        with server.connect() as dialogue:
            return dialogue.greeting.startswith(b"+OK")

    wait_until(has_room)
    assert server.faults() == []


def test_idle_connections_do_not_keep_others_out(make_server):
    """A front full of peers without a login closes the one that has been there for longest, and says why."""
    server = make_server(server__max_connections=5)
    with ExitStack() as open_attackers:
        idle = [open_attackers.enter_context(Attacker(server)) for _ in range(5)]
        for attacker in idle[:3]:
            newcomer = open_attackers.enter_context(server.connect())
            assert newcomer.greeting.startswith(b"+OK")
            assert attacker.rest().startswith(b"-ERR [SYS/TEMP] Too many connections")
        idle[3].send(b"QUIT\r\n")
        assert idle[3].replies(1) == [b"+OK"]  # whoever came later was let alone
    line = server.wait_for_event("connections_exhausted")
    assert (line["reason"], line["max_connections"]) == ("longest_without_login_closed", 5)
    assert server.faults() == []


def test_a_session_is_never_closed_for_a_newcomer(make_server):
    """Only peers without a login make room: a login that is being decided does not, nor a session."""
    server = make_server(server__max_connections=2, accounts__refusal_time_s=3)
    with Attacker(server, logged_in=True) as session, Attacker(server) as deciding:
        deciding.send(b"USER user0\r\nPASS wrong\r\n")
        assert deciding.replies(1) == [b"+OK"]
        wait_until(lambda: server.connect().greeting.startswith(b"-ERR [SYS/TEMP]"))
        assert deciding.replies(1) == [b"-ERR"]
        session.send(b"NOOP\r\n")
        assert session.replies(1) == [b"+OK"]


def test_who_is_turned_away_for_its_address_takes_nobodys_place(make_server):
    """Else one address could close all the connections of others before their login."""
    limits = {"server__max_connections": 3, "server__max_connections_per_address": 2}
    server = make_server(accounts__trusted_networks=[], **limits)
    with ExitStack() as connections:
        address = ("127.0.0.1", server.port)
        other = socket.create_connection(address, 20, source_address=("127.0.0.2", 0))
        other = connections.enter_context(Dialogue(other))
        assert other.line().startswith(b"+OK")
        for _ in range(2):
            connections.enter_context(Attacker(server))
        for _ in range(5):
            with server.connect() as turned_away:
                assert turned_away.greeting.startswith(b"-ERR [SYS/TEMP]")
        assert other.ask("QUIT").startswith(b"+OK")


@pytest.mark.skipif(not ROOT, reason="needs root: it looks at the memory of the service user's process")
def test_memory_goes_back_after_a_flood(make_server, tmp_path):
    """What 600 handshakes that nobody finishes need is the system's again soon after they have ended."""
    chain, key = Authority(tmp_path).issue("localhost")
    server = make_server(server__listen_tls=["127.0.0.1:0"], tls__certificates=[[chain, key]])
    front = server.pids("front")[0]
    hello = client_hello()

    def flood():
        with ExitStack() as connections:
            peers = [
                connections.enter_context(socket.create_connection(("127.0.0.1", server.tls_port), 20))
                for _ in range(600)
            ]
            for peer in peers:
                peer.sendall(hello)
            for peer in peers:
                assert peer.recv(1)
            return own_kib(front)

    most = flood()
    least = most

    def is_back():
        nonlocal least
        least = min(least, own_kib(front))
        return most - least > 15 * 1024

    wait_until(is_back, what=lambda: f"some of {most} KiB to go back; {least} KiB are left")


@pytest.mark.skipif(not ROOT, reason="needs root: it looks at the memory of the service user's process")
def test_a_front_keeps_nothing_of_the_connections_that_it_had(make_server):
    """When 1,500 who were on their way to a login have gone, it has nearly the memory of before."""
    server = make_server(server__max_connections=2000)
    front = server.pids("front")[0]
    warm_up = poplib.POP3("127.0.0.1", server.port, timeout=20)
    warm_up.user("nobody")
    warm_up.quit()
    before = own_kib(front)
    with ExitStack() as connections:
        for number in range(1500):
            peer = socket.create_connection(("127.0.0.1", server.port), 20, (f"127.5.{number // 50}.1", 0))
            connections.enter_context(peer)
            peer.sendall(b"USER somebody\r\n")
            assert peer.recv(200).startswith(b"+OK")
        most = own_kib(front)
        assert most - before > 8 * 1024
    wait_until(
        lambda: own_kib(front) - before < 1536,
        what=lambda: f"{most} KiB to go back to {before}; {own_kib(front)} KiB are left",
    )

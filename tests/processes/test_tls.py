"""TLS between real clients and real processes: implicit and STLS, and what a session gets of it."""

from __future__ import annotations

import os
import poplib
import socket
import ssl
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.serving import PASSWORD, ROOT, Dialogue, wait_until

TIMEOUT_S = 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Who issues all certificates here."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def serve(make_server, make_site, authority):
    """A function that starts gpop with TLS on both ports, on a new site with the given settings."""

    def start(accounts=1, **settings):
        pair = authority.issue("localhost", "pop.example.org")
        defaults = {"server__listen_tls": ["127.0.0.1:0"], "tls__certificates": [list(pair)]}
        return make_server(make_site(accounts=accounts, **(defaults | settings)))

    return start


@pytest.fixture
def server(serve):
    """gpop with TLS and one account; the test must not have led to any fault."""
    running = serve()
    yield running
    assert running.faults() == []


def encrypted(server, context, name="localhost", session=None) -> Dialogue:
    """Connect with TLS from the start, and read the greeting."""
    plain = socket.create_connection(("127.0.0.1", server.tls_port), TIMEOUT_S)
    dialogue = Dialogue(context.wrap_socket(plain, server_hostname=name, session=session))
    dialogue.greeting = dialogue.line()
    return dialogue


def begin_tls(dialogue, context, octets=b"STLS\r\n") -> Dialogue:
    """Send STLS, or what is said to be it, and begin TLS."""
    dialogue.send(octets)
    assert dialogue.line().startswith(b"+OK")
    return Dialogue(context.wrap_socket(dialogue.socket, server_hostname="localhost"))


def log_in(dialogue, name="user0") -> None:
    """USER and PASS."""
    assert dialogue.ask(f"USER {name}").startswith(b"+OK")
    assert dialogue.ask(f"PASS {PASSWORD}").startswith(b"+OK")


def capabilities(dialogue) -> set[bytes]:
    """What CAPA says, each with its arguments."""
    assert dialogue.ask("CAPA").startswith(b"+OK")
    return set(dialogue.lines())


def front_memory_kib(server) -> int:
    """The private memory of the front."""
    (front,) = server.pids("front")
    lines = Path(f"/proc/{front}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_", "Swap:")))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_inside_tls(server, authority, version):
    """Implicit TLS (RFC 8314): the greeting comes inside, and all of a session works; the log says how."""
    message = b"Subject: x\n\n.dot\nbody\n"
    server.site.deliver(message)
    client = poplib.POP3_SSL(
        "localhost", server.tls_port, timeout=TIMEOUT_S, context=authority.client_context(version)
    )
    assert "STLS" not in client.capa()
    client.user("user0")
    client.pass_(PASSWORD)
    assert client.stat()[0] == 1
    assert client.retr(1)[1] == [b"Subject: x", b"", b".dot", b"body"]
    client.dele(1)
    client.quit()
    assert server.site.files() == []
    closed = server.wait_for_event("session_closed")
    assert closed["tls"] == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    assert "GCM" in closed["cipher"]
    assert closed["close_reason"] == "quit"


def test_a_session_after_stls(server, authority):
    """STLS (RFC 2595 §4): no second greeting, the state stays AUTHORIZATION, CAPA is asked for again."""
    client = poplib.POP3("localhost", server.port, timeout=TIMEOUT_S)
    assert "STLS" in client.capa()
    client.stls(authority.client_context())
    after = client.capa()
    assert "STLS" not in after
    assert after["SASL"] == ["PLAIN", "LOGIN"]
    client.user("user0")
    client.pass_(PASSWORD)
    assert client.capa() == after
    client.quit()
    assert server.wait_for_event("session_closed")["tls"] == "TLSv1.3"


def test_a_second_stls_is_an_error(server, authority):
    """Inside TLS, and after the login."""
    dialogue = begin_tls(server.connect(), authority.client_context())
    assert dialogue.ask("STLS").startswith(b"-ERR")
    log_in(dialogue)
    assert dialogue.ask("STLS").startswith(b"-ERR")
    assert dialogue.ask("QUIT").startswith(b"+OK")


def test_what_was_injected_before_tls_is_discarded(serve, authority):
    """CVE-2011-0411, CVE-2021-38084: octets in the packet of STLS are never heard inside TLS."""
    server = serve(accounts__cleartext="never")
    attack = f"STLS\r\nUSER user0\r\nPASS {PASSWORD}\r\nDELE 1\r\nQUIT\r\n".encode()
    dialogue = begin_tls(server.connect(), authority.client_context(), attack)
    # The answer to our own command is the first thing to come.
    assert dialogue.ask("PASS x") == b"-ERR First the name, with USER"
    assert dialogue.ask("NOOP").startswith(b"-ERR")
    assert not server.events("session_closed", "login_refused")


def test_tls_forgets_a_name_given_before(server, authority):
    """RFC 2595 §4: what was said in cleartext may be somebody else's."""
    plain = server.connect()
    assert plain.ask("USER user0").startswith(b"+OK")
    dialogue = begin_tls(plain, authority.client_context())
    assert dialogue.ask(f"PASS {PASSWORD}") == b"-ERR First the name, with USER"


def test_without_a_certificate_there_is_no_stls(make_server):
    """Neither announced nor begun."""
    with make_server().connect() as dialogue:
        assert b"STLS" not in capabilities(dialogue)
        assert dialogue.ask("STLS").startswith(b"-ERR")


def test_where_cleartext_is_never_allowed_a_login_needs_tls(serve, authority):
    """USER is refused, PASS gets the same answer, CAPA offers STLS alone; inside TLS all is as ever."""
    server = serve(accounts__cleartext="never")
    plain = server.connect()
    assert not {b"USER", b"SASL PLAIN LOGIN"} & capabilities(plain)
    refused = plain.ask("USER user0")
    assert refused.startswith(b"-ERR [SYS/PERM]")
    assert plain.ask(f"PASS {PASSWORD}") == refused
    event = server.wait_for_event("login_refused")
    assert (event["reason"], event["user"], event["code"]) == ("cleartext", "user0", "SYS/PERM")
    dialogue = begin_tls(plain, authority.client_context())
    assert {b"USER", b"SASL PLAIN LOGIN"} <= capabilities(dialogue)
    log_in(dialogue)
    assert len(server.events("login_refused")) == 1
    assert PASSWORD not in server.log_text()


def test_cleartext_is_for_trusted_networks(serve):
    """Loopback is always trusted; with "always" and "trusted" it logs in without TLS."""
    for cleartext in ("trusted", "always"):
        running = serve(accounts__cleartext=cleartext, accounts__trusted_networks=[])
        with running.login() as dialogue:
            assert dialogue.ask("QUIT").startswith(b"+OK")


def test_a_refused_login_inside_tls_may_be_tried_again(server, authority):
    """Its stream to a session was never used; the log has the version of TLS."""
    dialogue = encrypted(server, authority.client_context())
    dialogue.ask("USER user0")
    assert dialogue.ask("PASS wrong").startswith(b"-ERR [AUTH]")
    assert server.wait_for_event("login_refused")["tls"] == "TLSv1.3"
    log_in(dialogue)
    assert dialogue.ask("STAT").startswith(b"+OK")


def test_a_maildrop_in_use_is_told_inside_tls(serve, authority):
    """What a session says itself before it ends comes through, and the end of TLS after it."""
    server = serve(session__lock_wait_s=0.1)
    first = encrypted(server, authority.client_context())
    log_in(first)
    second = encrypted(server, authority.client_context())
    second.ask("USER user0")
    assert second.ask(f"PASS {PASSWORD}").startswith(b"-ERR [IN-USE]")
    assert second.rest() == b""


def test_a_whole_session_in_one_write(server, authority):
    """Pipelined behind the login, more than is read at a time, and answered in order."""
    dialogue = encrypted(server, authority.client_context())
    script = f"USER user0\r\nPASS {PASSWORD}\r\n" + "NOOP\r\n" * 5000 + "QUIT\r\n"
    dialogue.send(script.encode())
    answers = dialogue.rest().splitlines()
    assert len(answers) == 5003
    assert all(answer.startswith(b"+OK") for answer in answers)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_half_close_after_quit_still_gets_every_answer(server, authority, version):
    """A client may end its own way first: close_notify, then the end of TCP."""
    server.site.deliver(b"Subject: x\n\n" + b"y" * 70 + b"\n")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.client_context(version).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", server.tls_port), TIMEOUT_S) as sock:

        def waiting(call, *arguments):
            while True:
                try:
                    return call(*arguments)
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    octets = sock.recv(65536)
                    assert octets, "the connection ended too early"
                    incoming.write(octets)

        waiting(tls.do_handshake)
        waiting(tls.read, 100)  # the greeting
        tls.write(f"USER user0\r\nPASS {PASSWORD}\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n".encode())
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        sock.sendall(outgoing.read())
        sock.shutdown(socket.SHUT_WR)
        while octets := sock.recv(65536):
            incoming.write(octets)
        incoming.write_eof()
        answers = b""
        with pytest.raises(ssl.SSLZeroReturnError):  # close_notify, and no end of TCP before it
            while True:
                answers += tls.read(65536)
    server.wait_for_event("session_closed", close_reason="quit", removed=1)
    assert answers.count(b"\r\n") == 3 + 4 + 2
    assert answers.endswith(b"+OK bye\r\n")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_end_of_tls_alone_ends_a_session(server, authority, version):
    """close_notify without the end of TCP: the client will say nothing more, and gets ours."""
    server.site.deliver(b"Subject: x\n\ny\n")
    dialogue = encrypted(server, authority.client_context(version))
    log_in(dialogue)
    assert dialogue.ask("DELE 1").startswith(b"+OK")
    plain = dialogue.socket.unwrap()  # sends its own, waits for ours, and closes nothing
    server.wait_for_event("session_closed", close_reason="disconnect", removed=0)
    assert plain.recv(100) == b""
    assert len(server.site.files()) == 1
    plain.close()


def test_a_client_that_vanishes_ends_its_session(server, authority):
    """A reset of TCP: the session sees the end, and removes nothing."""
    server.site.deliver(b"Subject: x\n\ny\n")
    dialogue = encrypted(server, authority.client_context())
    log_in(dialogue)
    assert dialogue.ask("DELE 1").startswith(b"+OK")
    dialogue.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    dialogue.close()
    server.wait_for_event("session_closed", close_reason="disconnect")
    assert len(server.site.files()) == 1


def test_a_session_that_is_killed_ends_its_connection(serve, authority):
    """The client sees an orderly end of TLS and no answer; the front lives on."""
    server = serve()
    dialogue = encrypted(server, authority.client_context())
    log_in(dialogue)
    (session,) = server.pids("session")
    os.kill(session, 9)
    assert dialogue.rest() == b""
    server.wait_for_event("session_died")
    server.wait_for_event("session_closed", close_reason="fault")
    log_in(encrypted(server, authority.client_context()))


def test_autologout_is_silent_inside_tls(serve, authority):
    """RFC 1939 §3: the end of TLS, and no reply."""
    server = serve(session__autologout_s=0.3)
    dialogue = encrypted(server, authority.client_context())
    log_in(dialogue)
    assert dialogue.rest() == b""
    server.wait_for_event("session_closed", close_reason="autologout")


def test_a_peer_that_stops_reading_is_not_kept_for_ever(serve, authority):
    """It takes nothing for the autologout time: session and relay both end, whatever is on its way."""
    server = serve(session__autologout_s=0.5)
    server.site.deliver(b"Subject: large\n\n" + (b"z" * 99 + b"\n") * 100_000)
    dialogue = encrypted(server, authority.client_context())
    log_in(dialogue)
    dialogue.send(b"RETR 1\r\n")
    server.wait_for_event("session_closed", close_reason="autologout")
    (front,) = server.pids("front")
    wait_until(lambda: not _connections(front, server.tls_port), what="the front to close the connection")


def _connections(pid: int, port: int) -> list[str]:
    """The established connections of this machine at a port that a process has a descriptor of."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        words[9]
        for words in lines
        if words[1].endswith(f":{port:04X}") and words[3] != "0A" and f"socket:[{words[9]}]" in inodes
    ]


def test_a_slow_reader_of_much_keeps_nobody_waiting(serve, authority):
    """50 MB to somebody who reads a little now and then, beside polls; all of it arrives, octet for octet."""
    server = serve(accounts=2)
    if len(server.site.names) < 2:
        pytest.skip("takes two accounts, and so root")
    body = b"Subject: large\r\n\r\n" + (b"%07d" * 14 % tuple(range(14)) + b"\r\n") * 500_000
    server.site.deliver(body, "user0")
    slow = encrypted(server, authority.client_context())
    log_in(slow, "user0")
    slow.send(b"RETR 1\r\nQUIT\r\n")
    assert slow.line().startswith(b"+OK")
    before = front_memory_kib(server) if ROOT else 0
    received = bytearray()
    for _ in range(20):
        received += slow.file.read(20_000)
        started = time.monotonic()
        with encrypted(server, authority.client_context()) as poll:
            log_in(poll, "user1")
            assert poll.ask("STAT") == b"+OK 0 0"
            assert poll.ask("QUIT").startswith(b"+OK")
        assert time.monotonic() - started < 5
    # What waits for it in the front is a few pieces.
    assert not ROOT or front_memory_kib(server) - before < 2048
    received += slow.rest()
    assert bytes(received) == body + b".\r\n+OK bye\r\n"


def test_many_polls_at_once_and_the_memory_comes_back(server, authority):
    """200 polls, 20 at once, without an error; what the front needed for them it uses again."""
    context = authority.client_context()

    def poll(_number):
        dialogue = encrypted(server, context)
        dialogue.ask("USER user0")
        answer = dialogue.ask(f"PASS {PASSWORD}")
        if answer.startswith(b"+OK"):
            assert dialogue.ask("STAT") == b"+OK 0 0"
            assert dialogue.ask("QUIT").startswith(b"+OK")
        assert dialogue.rest() == b""
        return answer

    def round_of_polls():
        with ThreadPoolExecutor(20) as pool:
            answers = set(pool.map(poll, range(200)))
        # They all share one maildrop and wait for each other.
        assert answers <= {b"+OK maildrop locked and ready"} | {
            answer for answer in answers if b"[IN-USE]" in answer
        }

    round_of_polls()
    before = front_memory_kib(server)
    for _ in range(2):
        round_of_polls()
    assert front_memory_kib(server) - before < 2048


@pytest.mark.skipif(not ROOT, reason="takes many accounts, and so root")
def test_polls_of_many_users_beside_a_slow_reader(serve, authority):
    """
    Polls of 50 users at once beside a RETR of 50 MB to a client that hardly reads: every one is served.

    And the front needs no more memory for them than for as many users before: what malloc has got for the
    most that came at once (some 3 MiB for 50) it keeps and uses again. So there is a first round that is not
    measured. GPOP_TEST_TLS_POLLS says how many polls, CI has few.
    """
    polls, users = int(os.environ.get("GPOP_TEST_TLS_POLLS", "200")), 50
    server = serve(accounts=users + 1)
    context = authority.client_context()
    large = b"Subject: large\r\n\r\n" + (b"z" * 98 + b"\r\n") * 500_000
    server.site.deliver(large, f"user{users}")
    slow = encrypted(server, context)
    log_in(slow, f"user{users}")
    slow.send(b"RETR 1\r\nQUIT\r\n")
    assert slow.line().startswith(b"+OK")

    def poll(names):
        for name in names:
            dialogue = encrypted(server, context)
            log_in(dialogue, name)
            assert dialogue.ask("STAT") == b"+OK 0 0"
            assert dialogue.ask("QUIT").startswith(b"+OK")
            assert dialogue.rest() == b""

    def polls_of_all(times):
        with ThreadPoolExecutor(users) as pool:
            # A list each: one user's polls come one after the other, as the session lock wants it.
            list(pool.map(poll, [[f"user{number}"] * times for number in range(users)]))

    polls_of_all(2)
    before = front_memory_kib(server)
    polls_of_all(polls // users)
    wait_until(lambda: front_memory_kib(server) - before < 4096, what="the front's memory to come back")
    assert slow.rest() == large + b".\r\n+OK bye\r\n"
    server.wait_for_event("session_closed", (2 + polls // users) * users + 1)
    assert server.faults() == []


def test_an_idle_connection_takes_little_memory(serve, authority):
    """At most 64 KiB of the front's, before the login and after it."""
    server = serve()
    context = authority.client_context()
    encrypted(server, context).close()
    before = front_memory_kib(server)
    peers = [encrypted(server, context) for _ in range(200)]
    assert (front_memory_kib(server) - before) / len(peers) <= 64
    for peer in peers:
        peer.close()


def test_a_handshake_that_never_ends_is_ended(serve):
    """The time-out of the login counts, and nobody else waits."""
    server = serve(server__login_timeout_s=0.5)
    with socket.create_connection(("127.0.0.1", server.tls_port), TIMEOUT_S) as silent:
        silent.sendall(b"\x16\x03\x01")
        assert silent.recv(100) == b""
    failed = server.wait_for_event("tls_failed", reason="timeout")
    assert failed["peer"] == "127.0.0.1"


@pytest.mark.parametrize("octets", [b"CAPA\r\nQUIT\r\n", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff" * 99])
def test_what_is_no_handshake_is_one_line_in_the_log(server, octets):
    """The connection ends, and the front goes on."""
    with socket.create_connection(("127.0.0.1", server.tls_port), TIMEOUT_S) as sock:
        sock.sendall(octets)
        while sock.recv(1000):
            pass
    server.wait_for_event("tls_failed")
    assert len(server.events("tls_failed")) == 1


def test_a_client_that_does_not_believe_the_certificate_is_logged(server):
    """With the alert it sent: users behind a name that is not in the certificate are found this way."""
    with pytest.raises(ssl.SSLCertVerificationError):
        encrypted(server, ssl.create_default_context())
    assert "unknown_ca" in server.wait_for_event("tls_failed")["reason"]


def test_old_versions_are_refused(serve, authority):
    """RFC 8997: nothing before TLS 1.2; with min_version nothing before 1.3."""
    server = serve(tls__min_version="1.3")
    with pytest.raises(ssl.SSLError):
        encrypted(server, authority.client_context(ssl.TLSVersion.TLSv1_2))
    encrypted(server, authority.client_context(ssl.TLSVersion.TLSv1_3)).close()


def test_cbc_can_be_left_out(serve, authority):
    """tls.ciphers as conf/gpop.toml proposes it: what is left out is not agreed upon, the rest is."""
    server = serve(tls__ciphers="ECDHE+AESGCM:ECDHE+CHACHA20")
    context = authority.client_context(ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
    with pytest.raises(ssl.SSLError):
        encrypted(server, context)
    assert server.wait_for_event("tls_failed")["reason"] == "no_shared_cipher"
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305")
    encrypted(server, context).close()


def test_the_certificate_is_chosen_by_name(make_server, make_site, authority):
    """SNI (RFC 6066 §3): the exact name, a wildcard, else the first certificate."""
    pairs = [authority.issue("localhost"), authority.issue("*.example.net"), authority.issue("a.example.net")]
    settings = {"server__listen_tls": ["127.0.0.1:0"], "tls__certificates": [list(pair) for pair in pairs]}
    server = make_server(make_site(**settings))
    shown = {}
    for name in ("localhost", "b.example.net", "A.example.net", "elsewhere.test", "x.y.example.net"):
        context = authority.client_context()
        context.check_hostname = False
        with encrypted(server, context, name) as dialogue:
            shown[name] = dialogue.socket.getpeercert()["subjectAltName"][0][1]
    assert shown == {
        "localhost": "localhost",
        "b.example.net": "*.example.net",
        "A.example.net": "a.example.net",
        "elsewhere.test": "localhost",
        "x.y.example.net": "localhost",
    }


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["localhost", "second.example.org"])
def test_a_session_of_tls_is_resumed(make_server, make_site, authority, version, name):
    """By ticket, whichever certificate it began with: a poll every minute costs no signature each time."""
    pairs = [authority.issue("localhost"), authority.issue("second.example.org")]
    settings = {"server__listen_tls": ["127.0.0.1:0"], "tls__certificates": [list(pair) for pair in pairs]}
    server = make_server(make_site(**settings))
    context = authority.client_context(version)
    first = encrypted(server, context, name)
    assert first.ask("QUIT").startswith(b"+OK")
    session = first.socket.session
    first.close()
    second = encrypted(server, context, name, session)
    assert second.socket.session_reused
    log_in(second)


def test_what_is_kept_for_a_connection_after_much_mail_is_bounded(serve, authority):
    """A session that has sent 20 MB and waits for its client."""
    server = serve(accounts=8)
    context = authority.client_context()
    peers = []
    for name in server.site.names:
        server.site.deliver(b"Subject: large\r\n\r\n" + (b"x" * 98 + b"\r\n") * 200_000, name)
    for name in server.site.names:
        peers.append(encrypted(server, context))
        log_in(peers[-1], name)
    before = front_memory_kib(server)
    for peer in peers:
        assert peer.ask("RETR 1").startswith(b"+OK")
        peer.lines()
    assert (front_memory_kib(server) - before) / len(peers) <= 128


# Renewal


def serial(server, context) -> str:
    """Which certificate a new connection is shown."""
    with encrypted(server, context) as dialogue:
        return dialogue.socket.getpeercert()["serialNumber"]


def test_a_renewed_certificate_is_served_while_sessions_go_on(serve, authority):
    """Within seconds, to new connections; 50 sessions, and peers before login, go on and end in order."""
    server = serve(accounts=50)
    context = authority.client_context()
    old = serial(server, context)
    sessions = []
    for name in server.site.names:
        server.site.deliver(b"Subject: x\n\ny\n", name)
        sessions.append(encrypted(server, context))
        log_in(sessions[-1], name)
    waiting = [encrypted(server, context) for _ in range(10)]
    (front,) = server.pids("front")
    authority.issue("localhost", "pop.example.org")
    wait_until(lambda: serial(server, context) != old, what="the new certificate")
    for session in sessions:
        assert session.ask("RETR 1").startswith(b"+OK")
        session.lines()
        assert session.ask("DELE 1").startswith(b"+OK")
        assert session.ask("QUIT").startswith(b"+OK")
    for peer in waiting:
        assert peer.ask("CAPA").startswith(b"+OK")
        peer.lines()
        peer.close()
    server.wait_for_event("session_closed", len(sessions), removed=1, close_reason="quit")
    # The old front ends with its last connection.
    wait_until(lambda: front not in server.pids("front"), what="the old front to end")
    loaded = server.events("certificate_loaded")
    assert len(loaded) == 2
    assert loaded[1]["days"] == 29
    assert server.faults() == []


def test_a_broken_certificate_keeps_the_old_one_and_is_logged_once(server, authority):
    """A key that is another certificate's; the right one ends it, without anybody's help."""
    context = authority.client_context()
    old = serial(server, context)
    _, key = (Path(path) for path in server.site.settings["tls__certificates"][0])
    key.write_bytes(Path(authority.issue("elsewhere")[1]).read_bytes())
    rejected = server.wait_for_event("config_rejected")
    assert "the key is not the certificate's" in rejected["problems"][0]
    assert serial(server, context) == old
    authority.issue("localhost", "pop.example.org")
    wait_until(lambda: serial(server, context) != old, what="the new certificate")
    assert len(server.events("config_rejected")) == 1


def test_sessions_inside_tls_have_the_grace_time(serve, authority):
    """SIGTERM: the front relays until the last session has ended."""
    server = serve(server__grace_time_s=20)
    dialogue = encrypted(server, authority.client_context())
    log_in(dialogue)
    server.process.terminate()
    server.wait_for_event("shutdown_started")
    assert dialogue.ask("STAT") == b"+OK 0 0"
    assert dialogue.ask("QUIT").startswith(b"+OK")
    assert server.process.wait(TIMEOUT_S) == 0

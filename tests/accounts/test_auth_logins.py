"""A real auth process, with a passwd-file: what a front and the broker get to hear, and when."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpop.auth.auth import MAX_OUTBOX
from gpop.privsep import channel, messages
from tests.accounts.auth_process import (
    DEADLINE_S,
    AuthProcess,
    FakeFront,
    accepted_by,
    let_clock_step,
    refusal,
    running,
    tcp_pair,
    until,
)

UID = os.geteuid() or 2000
GID = os.getegid() or 2000
TRUSTED = "127.0.0.1"
REFUSAL_TIME_S = 0.2


def line(name: str, password: str, extra: str = "") -> str:
    return f"{name}:{{PLAIN}}{password}:{UID}:{GID}::/home/{name}::{extra}\n"


def write(path: Path, text: str) -> list[dict[str, str]]:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    os.rename(new, path)
    return [{"type": "passwd-file", "path": str(path)}]


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return tmp_path / "users"


@pytest.fixture
def auth(users: Path, tmp_path: Path) -> Iterator[AuthProcess]:
    sources = write(users, line("joe", "secret") + line("ann", "secret", "maildir=/srv/ann"))
    with running(sources, tmp_path) as process:
        yield process


@pytest.fixture
def front(auth: AuthProcess) -> FakeFront:
    return auth.front()


# Verdicts


def test_an_accepted_login_reaches_front_and_broker(auth: AuthProcess, front: FakeFront) -> None:
    """With the account for the broker, names for the log, and the very descriptors of the front."""
    login = front.login(b"joe", b"secret")
    answer = login.answer()
    assert answer.kind == messages.ACCEPTED
    assert answer.fields["user"] == answer.fields["account"] == "joe"
    assert answer.fields["source"] == "passwd-file" and answer.fields["auth_us"] > 0
    frame, fds = auth.served_with_descriptors()
    assert time.monotonic() - 60 < frame.fields["received_ms"] / 1000 <= time.monotonic()
    assert frame.fields == {
        "received_ms": frame.fields["received_ms"],
        "removal": "",
        "login_id": 1,
        "account": b"joe",
        "uid": UID,
        "gid": GID,
        "groups": [GID],
        "home": b"/home/joe",
        "maildir": b"/home/joe/Maildir",
        "peer": "127.9.2.1",
        "dialogue": 0,
        "pipelined": 0,
        "utf8": 0,
        "language": "",
    }
    os.write(fds[0], b"+OK\r\n")
    assert login.client.recv(5) == b"+OK\r\n"
    with socket.socket(fileno=os.dup(fds[1])) as session_end:
        session_end.send(messages.encode(messages.SERVING))
    assert login.answer().kind == messages.SERVING
    channel.close_all(fds)
    assert login.closed()


def test_unknown_user_and_wrong_password_look_the_same(auth: AuthProcess, front: FakeFront) -> None:
    """The same code, at the same fixed time after PASS; only the log's word differs."""
    for name, word in ((b"joe", "wrong_password"), (b"nobody", "unknown_user")):
        login = front.login(name, b"wrong", TRUSTED)
        assert refusal(login) == ("AUTH", word)
        assert_at_a_multiple(time.monotonic() - login.sent_s)
        assert login.closed()


def assert_at_a_multiple(taken_s: float) -> None:
    """On a machine that is busy with other things it may be a later multiple, but it is one."""
    # A frame has the time in whole milliseconds.
    steps = (taken_s + 0.002) / REFUSAL_TIME_S
    assert steps >= 1.0 and steps % 1.0 < 0.5, taken_s


def test_a_late_refusal_comes_at_the_next_multiple(auth: AuthProcess, front: FakeFront) -> None:
    """Of a PASS that came 0.5 s ago: 0.6 s after it, not 0.5 s plus what a check takes."""
    age_s = 2.5 * REFUSAL_TIME_S
    login = front.login(b"joe", b"wrong", TRUSTED, received_s=time.monotonic() - age_s)
    refusal(login)
    assert_at_a_multiple(time.monotonic() - login.sent_s + age_s)


@pytest.mark.parametrize("age_s", [-3600.0, 3600.0])
def test_a_front_with_a_wrong_clock_harms_nobody(auth: AuthProcess, front: FakeFront, age_s: float) -> None:
    """A PASS from the future, or from long ago, is one of now."""
    login = front.login(b"joe", b"wrong", TRUSTED, received_s=time.monotonic() - age_s)
    refusal(login)
    assert time.monotonic() - login.sent_s < 2


@pytest.mark.parametrize(
    "name, password", [(b"jo\te", b"secret"), (b"", b"secret"), (b"joe", b""), (b"joe", b"secret\0")]
)
def test_what_no_front_lets_through_is_refused(
    auth: AuthProcess, front: FakeFront, name: bytes, password: bytes
) -> None:
    """And the front keeps its conversation: other users of it did nothing wrong."""
    assert refusal(front.login(name, password, TRUSTED))[0] == "AUTH"
    assert accepted_by(auth, front.login(b"joe", b"secret")) == "passwd-file"


def test_a_changed_passwd_file_is_used_at_once_and_a_lost_one_is_an_outage(
    auth: AuthProcess, front: FakeFront, users: Path
) -> None:
    """[SYS/TEMP] without a file, never "no such user"; and all is well when it is back."""
    write(users, line("joe", "new"))
    assert accepted_by(auth, front.login(b"joe", b"new")) == "passwd-file"
    assert refusal(front.login(b"joe", b"secret", TRUSTED)) == ("AUTH", "wrong_password")
    users.unlink()
    login = front.login(b"joe", b"new", TRUSTED)
    assert refusal(login) == ("SYS/TEMP", "source_unavailable")
    assert refusal(front.login(b"nobody", b"new", TRUSTED))[0] == "SYS/TEMP"
    write(users, line("joe", "secret"))
    assert accepted_by(auth, front.login(b"joe", b"secret")) == "passwd-file"
    reasons = {event["reason"] for event in auth.events("auth_fault")}
    assert reasons == {"passwd_file_unreadable", "source_unavailable"}


def test_no_password_is_logged(auth: AuthProcess, front: FakeFront) -> None:
    """Neither a right one nor a wrong one, at whichever level."""
    refusal(front.login(b"joe", b"hunter2"))
    accepted_by(auth, front.login(b"joe", b"secret", "127.9.2.2"))
    text = auth.log_path.read_text()
    assert "penalty_raised" in text
    assert "hunter2" not in text and "secret" not in text


# Penalties


def test_after_a_failure_a_source_waits_and_others_do_not(auth: AuthProcess, front: FakeFront) -> None:
    """Two seconds before the next attempt is even looked at, the right password included."""
    refusal(front.login(b"joe", b"wrong", "127.9.2.1"))
    held = front.login(b"joe", b"secret", "127.9.2.1")
    assert accepted_by(auth, front.login(b"joe", b"secret", "127.9.2.2")) == "passwd-file"
    assert not held.is_answered()
    assert accepted_by(auth, held) == "passwd-file"
    assert 2.0 <= time.monotonic() - held.sent_s < 4.0
    assert [event["delay_s"] for event in auth.events("penalty_raised")] == [2.0]


def test_a_trusted_source_never_waits(auth: AuthProcess, front: FakeFront) -> None:
    """However often its users are wrong."""
    for guess in range(3):
        refusal(front.login(b"joe", b"wrong%d" % guess, TRUSTED))
    login = front.login(b"joe", b"secret", TRUSTED)
    assert accepted_by(auth, login) == "passwd-file"
    assert time.monotonic() - login.sent_s < 1.0
    assert not auth.events("penalty_raised")


def test_the_penalised_are_held_in_bounded_number(auth: AuthProcess, front: FakeFront) -> None:
    """More than eight at once from one source are told to come back later."""
    refusal(front.login(b"joe", b"wrong", "127.9.2.1"))
    logins = [front.login(b"joe", b"guess%d" % number, "127.9.2.1") for number in range(10)]
    assert [refusal(login) for login in logins[8:]] == [("SYS/TEMP", "too_many_attempts")] * 2
    assert not any(login.is_answered() for login in logins[:8])


def test_a_burst_of_guesses_is_stopped_by_its_own_failures(auth: AuthProcess, front: FakeFront) -> None:
    """Sent at once before any failed: at most three run (one place stays free), the others wait."""
    logins = [front.login(b"joe", b"guess%d" % number, "127.9.2.1") for number in range(9)]
    end = logins[0].sent_s + 1.5
    until(lambda: time.monotonic() > end, "1.5 s")
    answered = [refusal(login) for login in logins if login.is_answered()]
    assert 1 <= len(answered) <= 3
    assert set(answered) == {("AUTH", "wrong_password")}


# Hostile fronts


def broken_front(auth: AuthProcess) -> FakeFront:
    """A front with a login that is held, so that there is something to lose."""
    front = auth.front()
    peer = f"127.9.2.{50 + len(auth.fronts)}"
    refusal(front.login(b"joe", b"wrong", peer))
    front.login(b"joe", b"secret", peer)
    return front


def assert_ended(auth: AuthProcess, front: FakeFront, problem: str) -> None:
    """The conversation is over, nothing of it is left open, the broker knows, and others go on."""
    front.socket.settimeout(20)
    assert front.socket.recv(1) == b""
    assert front.logins[-1].closed()
    assert problem in auth.events("frame_rejected")[-1]["problem"]
    assert auth.cut_off() is front
    other = auth.front()
    assert accepted_by(auth, other.login(b"joe", b"secret", "127.9.2.99")) == "passwd-file"


def test_a_frame_that_is_none_ends_the_front(auth: AuthProcess) -> None:
    """Octets that are no frame."""
    front = broken_front(auth)
    front.socket.send(b"USER joe\r\n")
    assert_ended(auth, front, "bad header")


def test_a_frame_of_another_kind_ends_the_front(auth: AuthProcess) -> None:
    """A front does not tell auth to drain, nor the broker to serve."""
    front = broken_front(auth)
    front.socket.send(messages.encode(messages.DRAIN, at_once=1))
    assert_ended(auth, front, "not for auth")


def test_a_frame_that_is_too_long_ends_the_front(auth: AuthProcess) -> None:
    """Longer than any LOGIN."""
    front = broken_front(auth)
    front.socket.send(
        messages.HEADER.pack(messages.VERSION, messages.PIPELINED, 40_002) + b"\x9c\x40" + b"x" * 40_000
    )
    assert_ended(auth, front, "cut short")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_wrong_number_of_descriptors_ends_the_front(auth: AuthProcess, count: int) -> None:
    """And what was sent is closed."""
    front = broken_front(auth)
    before = auth.descriptors()
    frame = login_frame("127.9.2.1")
    ours, theirs = socket.socketpair()
    channel.send(front.socket, frame, [theirs.fileno()] * count)
    theirs.close()
    assert_ended(auth, front, "descriptors")
    ours.settimeout(20)
    assert ours.recv(1) == b""
    ours.close()
    until(lambda: auth.descriptors() <= before, "descriptors closed")


def test_a_descriptor_that_is_no_socket_ends_the_front(auth: AuthProcess) -> None:
    """A file in place of either."""
    for order in (1, -1):
        front = broken_front(auth)
        ours, theirs = channel.pair()
        null = os.open("/dev/null", os.O_RDONLY)
        channel.send(front.socket, login_frame("127.9.2.1"), [null, theirs.fileno()][::order])
        theirs.close()
        os.close(null)
        assert_ended(auth, front, "socket")
        ours.close()


def test_a_front_that_lies_about_the_peer_is_ended(auth: AuthProcess) -> None:
    """Penalties hang on the address; where the kernel knows it, it is asked."""
    front = broken_front(auth)
    client, server = tcp_pair(TRUSTED)
    with client, server:
        front.login(b"joe", b"secret", "127.9.2.77", stream=server)
        assert_ended(auth, front, "not the peer")


def test_with_a_relay_the_address_is_that_of_the_clients_own_stream(auth: AuthProcess) -> None:
    """Inside TLS the session's stream is one end of a pair; auth asks the third descriptor, and closes it."""
    front = broken_front(auth)
    client, server = tcp_pair("127.9.2.5")
    sessions, relays = socket.socketpair()
    ours, theirs = channel.pair()
    with client, server, relays:
        fds = [sessions.fileno(), theirs.fileno(), server.fileno()]
        channel.send(front.socket, login_frame("127.9.2.5", messages.RELAYED_LOGIN), fds)
        sessions.close()
        theirs.close()
        frame, fds = auth.served_with_descriptors()
        assert frame.fields["peer"] == "127.9.2.5"
        assert os.fstat(fds[0]).st_ino != os.fstat(server.fileno()).st_ino
        channel.close_all(fds)
        server.close()
        client.settimeout(20)
        assert client.recv(1) == b""
    ours.close()


@pytest.mark.parametrize("wrong", ["peer", "order", "two", "three"])
def test_a_front_that_lies_about_a_relay_is_ended(auth: AuthProcess, wrong: str) -> None:
    """Another address, another kind of stream for the session, a descriptor too few or too many."""
    problems = {
        "peer": "not the peer",
        "order": "wrong kind",
        "two": "2 descriptors",
        "three": "3 descriptors",
    }
    front = broken_front(auth)
    client, server = tcp_pair("127.9.2.5")
    sessions, relays = socket.socketpair()
    ours, theirs = channel.pair()
    with client, server, sessions, relays:
        fds = [sessions.fileno(), theirs.fileno(), server.fileno()]
        kind = messages.LOGIN if wrong == "three" else messages.RELAYED_LOGIN
        frame = login_frame("127.9.2.6" if wrong == "peer" else "127.9.2.5", kind)
        channel.send(front.socket, frame, {"order": fds[::-1], "two": fds[:2]}.get(wrong, fds))
        theirs.close()
        assert_ended(auth, front, problems[wrong])
    ours.close()


BALANCER = "127.9.3.1"


@pytest.fixture(params=["proxy_networks", "xclient_networks"])
def behind_proxies(users: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[AuthProcess]:
    """Auth, with a network whose hosts speak for others."""
    sources = write(users, line("joe", "secret") + line("ann", "secret", "allow_nets=192.0.2.7/32"))
    with running(sources, tmp_path, **{request.param: ["127.9.3.0/24"]}) as process:
        yield process


def test_a_front_is_believed_about_who_comes_through_a_proxy(behind_proxies: AuthProcess) -> None:
    """Penalties and allow_nets are the client's; the proxy's address has none, and its own login no delay."""
    login = partial(behind_proxies.front().login, through=BALANCER)
    assert refusal(login(b"joe", b"wrong", "192.0.2.1")) == ("AUTH", "wrong_password")
    held = login(b"joe", b"secret", "192.0.2.1")
    assert accepted_by(behind_proxies, login(b"ann", b"secret", "192.0.2.7")) == "passwd-file"
    assert refusal(login(b"ann", b"secret", "192.0.2.8")) == ("AUTH", "peer_not_allowed")
    assert accepted_by(behind_proxies, login(b"joe", b"secret", BALANCER)) == "passwd-file"
    assert not held.is_answered()
    assert {event["peer"] for event in behind_proxies.events("penalty_raised")} <= {"192.0.2.1", "192.0.2.8"}


def test_a_front_is_believed_about_nobody_else(behind_proxies: AuthProcess) -> None:
    """Of a stream from elsewhere the kernel knows whose it is, proxies or not."""
    front = broken_front(behind_proxies)
    client, server = tcp_pair("127.9.2.1")
    with client, server:
        front.login(b"joe", b"secret", BALANCER, stream=server)
        assert_ended(behind_proxies, front, "not the peer")


@pytest.mark.parametrize("peer", ["", "x", "192.0.2.1 ", "fe80::1%eth0", "192.0.2.1\n", "x" * 64])
def test_a_client_of_a_proxy_has_an_address(behind_proxies: AuthProcess, peer: str) -> None:
    """It becomes PAM_RHOST and the key of penalties: a front that names anything else is ended."""
    front = broken_front(behind_proxies)
    front.login(b"joe", b"secret", peer, through=BALANCER)
    assert_ended(behind_proxies, front, "no address")


def test_a_front_can_not_guess_in_many_names(auth: AuthProcess, front: FakeFront) -> None:
    """Streams of which only it says where they come from are one source, and trusted by nobody."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert accepted_by(auth, front.login(b"joe", b"secret", TRUSTED, stream=theirs)) == "passwd-file"
        refusal(front.login(b"joe", b"wrong", TRUSTED, stream=theirs))
        held = front.login(b"joe", b"secret", "127.9.2.9", stream=theirs)
        assert accepted_by(auth, front.login(b"joe", b"secret", "127.9.2.9")) == "passwd-file"
        assert not held.is_answered()


def test_an_unconnected_stream_is_not_decided_about(auth: AuthProcess, front: FakeFront) -> None:
    """A client that has gone, or a front that wants to guess in nobody's name."""
    with socket.socket() as unconnected:
        refused = front.login(b"joe", b"secret", stream=unconnected).answer().fields
    assert (refused["code"], refused["reason"]) == ("SYS/TEMP", "client_gone")
    # It was all the time since the machine had started.
    assert 0 <= refused["auth_us"] < 1_000_000 * DEADLINE_S


def login_frame(peer: str, kind: int = messages.LOGIN) -> bytes:
    return messages.encode(
        kind,
        login_id=1,
        name=b"joe",
        password=b"secret",
        mechanism="USER",
        peer=peer,
        peer_port=1,
        local="127.9.2.9",
        local_port=110,
        received_ms=0,
        dialogue=0,
        pipelined=0,
        prepared_name=b"",
        prepared_password=b"",
        utf8=0,
        language="",
    )


@given(
    octets=st.binary(max_size=80)
    | st.builds(lambda frame, tail: frame[:4] + tail, st.just(login_frame("x")), st.binary(max_size=60))
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_octets_end_one_front_and_nothing_else(auth: AuthProcess, octets: bytes) -> None:
    """No octets stop auth, or get an answer."""
    front = auth.front()
    front.socket.send(octets or b"x")
    front.socket.settimeout(20)
    assert front.socket.recv(1) == b""
    front.close()
    auth.fronts.remove(front)
    assert auth.process.poll() is None


def test_a_front_that_does_not_read_blocks_nobody(auth: AuthProcess, front: FakeFront) -> None:
    """A channel that is full already takes no refusal; auth does not wait for it."""
    ours, theirs = channel.pair()
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            theirs.send(b"x" * 1000)
    theirs.setblocking(True)
    client, server = socket.socketpair()
    channel.send(front.socket, login_frame("127.9.2.1"), [server.fileno(), theirs.fileno()])
    server.close()
    theirs.close()
    assert accepted_by(auth, front.login(b"joe", b"secret", "127.9.2.2")) == "passwd-file"
    client.settimeout(20)
    assert client.recv(1) == b""  # the login itself was given up
    ours.close()
    client.close()


def test_a_front_that_dies_takes_its_logins_with_it(auth: AuthProcess, front: FakeFront) -> None:
    """Held, waiting to be refused, being checked: every descriptor is closed, auth goes on."""
    other = auth.front()
    accepted_by(auth, other.login(b"joe", b"secret", "127.9.2.9"))
    before = auth.descriptors()
    refusal(front.login(b"joe", b"wrong", "127.9.2.1"))
    logins = [
        front.login(b"joe", b"secret", "127.9.2.1"),
        front.login(b"joe", b"wrong", TRUSTED),
        front.login(b"joe", b"secret2", "127.9.2.2"),
    ]
    front.close()
    for login in logins:
        assert login.closed()
    until(lambda: auth.descriptors() <= before, "descriptors closed")
    assert accepted_by(auth, other.login(b"joe", b"secret", "127.9.2.10")) == "passwd-file"


# Broker


def test_a_broker_that_pauses_gets_every_login_in_the_end(users: Path, tmp_path: Path) -> None:
    """What its socket does not take waits, in bounded number; over it a login is told [SYS/TEMP]."""
    with running(write(users, line("joe", "secret")), tmp_path, control_send_octets=4608) as auth:
        front = auth.front()
        logins = [front.login(b"joe", b"secret", f"127.9.{number % 4}.2") for number in range(300)]
        answers = [login.answer() for login in logins]
        accepted = [answer for answer in answers if answer.kind == messages.ACCEPTED]
        refused = {
            (answer.fields["code"], answer.fields["reason"]) for answer in answers if answer not in accepted
        }
        assert len(accepted) > MAX_OUTBOX
        assert refused == {("SYS/TEMP", "broker_busy")}
        served = {auth.served().fields["login_id"] for _ in accepted}
        assert len(served) == len(accepted)
        assert all(login.closed() for login in logins)
        assert accepted_by(auth, front.login(b"joe", b"secret")) == "passwd-file"


def test_drain_answers_what_is_pending_and_waits_for_the_fronts(auth: AuthProcess, front: FakeFront) -> None:
    """A front that drains too may still have clients who have not sent PASS."""
    pending = front.login(b"joe", b"wrong", TRUSTED)
    auth.drain()
    assert refusal(pending) == ("AUTH", "wrong_password")
    assert accepted_by(auth, front.login(b"joe", b"secret")) == "passwd-file"
    assert auth.process.poll() is None
    front.close()
    assert auth.process.wait(20) == 0


def test_drain_at_once_does_not_wait_for_the_fronts(auth: AuthProcess, front: FakeFront) -> None:
    """But for what is pending."""
    pending = front.login(b"joe", b"wrong", TRUSTED)
    auth.drain(at_once=True)
    assert refusal(pending) == ("AUTH", "wrong_password")
    assert auth.process.wait(20) == 0


def test_without_a_broker_nobody_is_accepted_and_auth_ends(auth: AuthProcess, front: FakeFront) -> None:
    """A login that is being decided is told so."""
    refusal(front.login(b"joe", b"wrong", "127.9.2.1"))
    held = front.login(b"joe", b"secret", "127.9.2.1")
    accepted_by(auth, front.login(b"joe", b"secret", TRUSTED))  # by now the held one is taken in
    auth.control.close()
    assert refusal(held) == ("SYS/TEMP", "broker_gone")
    assert auth.process.wait(20) == 0


def test_a_broker_that_dies_leaves_no_accepted_login_unanswered(users: Path, tmp_path: Path) -> None:
    """What had not been handed over yet is told so, and closed."""
    with running(write(users, line("joe", "secret")), tmp_path, control_send_octets=4608) as auth:
        front = auth.front()
        logins = [front.login(b"joe", b"secret", f"127.9.{number % 4}.2") for number in range(60)]
        assert all(login.answer().kind == messages.ACCEPTED for login in logins)
        auth.control.close()
        assert refusal(logins[-1]) == ("SYS/TEMP", "broker_gone")
        assert auth.process.wait(20) == 0
        assert not auth.events("process_fault")


def test_sigterm_drains_and_a_terminals_signals_do_nothing(auth: AuthProcess, front: FakeFront) -> None:
    """Those are for the broker."""
    for number in (signal.SIGINT, signal.SIGHUP):
        auth.process.send_signal(number)
    assert accepted_by(auth, front.login(b"joe", b"secret")) == "passwd-file"
    auth.process.send_signal(signal.SIGTERM)
    front.close()
    assert auth.process.wait(20) == 0


def test_nothing_grows(auth: AuthProcess, front: FakeFront) -> None:
    """Descriptors and processes after many logins of every outcome."""
    accepted_by(auth, front.login(b"joe", b"secret", TRUSTED))
    before = auth.descriptors()
    for _ in range(3):
        logins = [front.login(b"joe", b"secret" if number % 2 else b"wrong", TRUSTED) for number in range(20)]
        for login in logins:
            if login.answer().kind == messages.ACCEPTED:
                auth.served()
            login.close()
    until(lambda: auth.descriptors() <= before, "descriptors closed")
    children = Path(f"/proc/{auth.pid}/task/{auth.pid}/children")
    until(lambda: children.read_text() == "", "checkers reaped")


# Limits


def test_an_address_has_so_many_logins_under_way(users: Path, tmp_path: Path) -> None:
    """Those that wait for their refusal count; other addresses and trusted ones do not notice."""
    sources = write(users, line("joe", "secret"))
    with running(sources, tmp_path, max_logins_per_address=2, refusal_time_s=1.0) as auth:
        front = auth.front()
        waiting = [front.login(b"joe", b"wrong", "127.9.2.1") for _ in range(2)]
        more = front.login(b"joe", b"secret", "127.9.2.1")
        assert refusal(more) == ("SYS/TEMP", "too_many_logins_of_address")
        assert accepted_by(auth, front.login(b"joe", b"secret", "127.9.2.2")) == "passwd-file"
        trusted = [front.login(b"joe", b"wrong", TRUSTED) for _ in range(4)]
        assert {refusal(login) for login in waiting + trusted} == {("AUTH", "wrong_password")}
        # Who has been answered makes room, and who was turned away has no penalty for it.
        assert len(auth.events("penalty_raised")) == 1
        assert accepted_by(auth, front.login(b"joe", b"secret", "127.9.2.1")) == "passwd-file"


def test_logins_of_a_front_that_ended_count_no_more(users: Path, tmp_path: Path) -> None:
    """Otherwise its peers would be locked out for as long as auth lives."""
    sources = write(users, line("joe", "secret"))
    with running(sources, tmp_path, max_logins_per_address=1, refusal_time_s=5.0) as auth:
        ending, front = auth.front(), auth.front()
        lost = ending.login(b"joe", b"secret", "127.9.2.1", received_s=0)
        lost.close()
        ending.close()
        auth.fronts.remove(ending)

        def has_room() -> bool:
            frame = front.login(b"joe", b"secret", "127.9.2.1").answer()
            if frame.kind == messages.ACCEPTED:
                auth.served()
            return frame.kind == messages.ACCEPTED

        until(has_room, "room for another login of the address")


def test_the_auth_cache_is_no_way_around_a_login_delay(users: Path, tmp_path: Path) -> None:
    """An account that has to wait is refused by whichever way its password was found right."""
    sources = write(users, line("joe", "secret"))
    with running(sources, tmp_path, cache_enabled=True, login_delay_s=3600, login_delay_burst=1) as auth:
        front = auth.front()
        assert accepted_by(auth, front.login(b"joe", b"secret")) == "passwd-file"

        def refused_from() -> str:
            login = front.login(b"joe", b"secret")
            fields = login.answer().fields
            assert (fields["code"], fields["reason"]) == ("LOGIN-DELAY", "login_delay")
            assert login.closed()
            source: str = fields["source"]
            return source

        until(lambda: refused_from() == "cache", "an answer from the cache")
        assert auth.events("penalty_raised") == []
        assert refusal(front.login(b"joe", b"wrong")) == ("AUTH", "wrong_password")


def test_two_names_of_one_maildrop_have_one_delay(users: Path, tmp_path: Path) -> None:
    """The delay spares the maildrop, so another name for it is no way around."""
    maildir = "maildir=/srv/shared"
    sources = write(users, line("joe", "secret", maildir) + line("ann", "secret", maildir))
    with running(sources, tmp_path, login_delay_s=3600, login_delay_burst=1) as auth:
        front = auth.front()
        assert accepted_by(auth, front.login(b"joe", b"secret")) == "passwd-file"
        assert refusal(front.login(b"ann", b"secret")) == ("LOGIN-DELAY", "login_delay")


# The auth cache


@pytest.fixture(scope="module")
def cached_users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cached") / "users"


@pytest.fixture(scope="module")
def caching(cached_users: Path) -> Iterator[AuthProcess]:
    """One for all of these tests: for two seconds after its passwd-file was written it keeps nothing."""
    sources = write(cached_users, line("joe", "secret"))
    with running(sources, cached_users.parent, cache_enabled=True) as process:
        yield process


def log_in_until_cached(auth: AuthProcess, front: FakeFront) -> None:
    """The first logins after a change of a watched file are not kept; the system's files are watched too."""
    until(lambda: accepted_by(auth, front.login(b"joe", b"secret", TRUSTED)) == "cache", "a hit")


def test_a_hit_needs_no_checker(caching: AuthProcess) -> None:
    """Same account, same frames, and no process for it."""
    front = caching.front()
    log_in_until_cached(caching, front)
    login = front.login(b"joe", b"secret", TRUSTED)
    assert login.answer().fields["source"] == "cache"
    assert caching.served().fields["maildir"] == b"/home/joe/Maildir"
    assert accepted_by(caching, front.login(b"joe", b"secret", "127.0.0.2")) == "passwd-file"


def test_a_wrong_password_is_no_hit_and_evicts_nothing(caching: AuthProcess) -> None:
    """A stranger can neither get in nor keep anybody out."""
    front = caching.front()
    log_in_until_cached(caching, front)
    assert refusal(front.login(b"joe", b"wrong", TRUSTED)) == ("AUTH", "wrong_password")
    assert accepted_by(caching, front.login(b"joe", b"secret", TRUSTED)) == "cache"


def test_a_penalised_source_waits_for_a_hit_too(caching: AuthProcess) -> None:
    """Otherwise the cache would tell a guesser at once which guess was right."""
    front = caching.front()
    until(lambda: accepted_by(caching, front.login(b"joe", b"secret", "127.9.2.1")) == "cache", "a hit")
    refusal(front.login(b"joe", b"wrong", "127.9.2.1"))
    held = front.login(b"joe", b"secret", "127.9.2.1")
    assert accepted_by(caching, held) == "cache"
    assert time.monotonic() - held.sent_s >= 2.0


def test_a_changed_passwd_file_empties_the_cache(caching: AuthProcess, cached_users: Path) -> None:
    """A withdrawn password works a second longer at most."""
    front = caching.front()
    log_in_until_cached(caching, front)
    let_clock_step(cached_users)
    write(cached_users, line("joe", "changed"))
    changed = time.monotonic()

    def refused() -> bool:
        login = front.login(b"joe", b"secret", TRUSTED)
        if login.answer().kind == messages.REFUSED:
            return True
        caching.served()
        return False

    until(refused, "the old password is refused")
    assert time.monotonic() - changed < 1.0 + 3 * REFUSAL_TIME_S
    assert str(cached_users) in [event["path"] for event in caching.events("auth_cache_dropped")]
    write(cached_users, line("joe", "secret"))


# Start


def test_bad_lines_are_logged_at_the_start(users: Path, tmp_path: Path) -> None:
    """With their numbers; everybody else is served."""
    with running(write(users, "bad\n" + line("joe", "secret")), tmp_path) as auth:
        assert accepted_by(auth, auth.front().login(b"joe", b"secret")) == "passwd-file"
        assert [event["line"] for event in auth.events("passwd_file_problem")] == [1]


@pytest.mark.skipif(os.geteuid() == 0, reason="it is about running without root")
def test_pam_is_refused_without_root(tmp_path: Path) -> None:
    """It could check nobody's password but one's own."""
    process = AuthProcess([{"type": "pam", "service": "login"}], tmp_path)
    assert process.process.wait(20) == 1
    assert "needs root" in process.events("process_fault")[0]["problem"]
    process.stop()


# Prepared forms (RFC 4013)


def test_a_prepared_form_is_tried_after_what_was_sent(auth: AuthProcess, front: FakeFront) -> None:
    """In one attempt, which is one failure if none is right, for one penalty."""
    login = front.login(b"j\xc2\xado\xc2\xade", b"\xef\xbc\x93", prepared=(b"joe", b"3"))
    assert refusal(login) == ("AUTH", "wrong_password")
    assert accepted_by(auth, front.login(b"j\xc2\xado\xc2\xade", b"secret", TRUSTED, prepared=(b"joe", b"")))
    assert accepted_by(auth, front.login(b"ann", b"s\xc2\xadecret", TRUSTED, prepared=(b"", b"secret")))
    assert len(auth.events("penalty_raised")) == 1


def test_a_prepared_name_is_held_to_the_same(auth: AuthProcess, front: FakeFront) -> None:
    """No front that was taken over gets a control character to a source that way."""
    login = front.login(b"j\xc2\xadoe", b"secret", TRUSTED, prepared=(b"jo\ne", b""))
    assert refusal(login) == ("AUTH", "malformed_login")


def test_a_cached_login_is_found_by_what_was_sent(caching: AuthProcess) -> None:
    """The same octets again are a hit; other ones go to the sources, whatever their prepared form is."""
    front = caching.front()
    sent = {"name": b"j\xc2\xadoe", "password": b"secret", "peer": TRUSTED, "prepared": (b"joe", b"")}
    until(lambda: accepted_by(caching, front.login(**sent)) == "cache", "a hit")
    assert (
        accepted_by(caching, front.login(b"\xc2\xadjoe", b"secret", TRUSTED, prepared=(b"joe", b"")))
        != "cache"
    )

"""
A front or a session that an attacker has taken over: what it sends, to whom, and who suffers.

A taken-over session is played by the test itself, against a real front whose broker and auth the test is
as well. For a taken-over front a real one is stopped, and its descriptors are taken from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import poplib
import re
import select
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpop import programs
from gpop.config import reading
from gpop.privsep import channel, messages
from tests import frames
from tests.serving import PASSWORD, ROOT, Site, socket_of, wait_until

DEADLINE_S = 20
TOTALS = {"close_reason": "quit", "cache": "hit", "cache_reason": "unchanged", "fault": ""}
A_LONG_TIME_S = 600
needs_root = pytest.mark.skipif(not ROOT, reason="needs root: it takes descriptors from another process")


class PlayedSession:
    """A login as auth, the broker and the session get it: the frame, the client's stream, the channel."""

    def __init__(self, octets: bytes, fds: list[int]) -> None:
        self.login = messages.decode(octets).fields
        self.stream = socket.socket(fileno=fds[0])
        self.channel = socket.socket(fileno=fds[1])

    def send(self, kind: int, **fields: object) -> None:
        self.channel.send(messages.encode(kind, **fields))

    def accept(self, user: str = "ann") -> None:
        self.send(messages.ACCEPTED, user=user, account=user, source="passwd-file", auth_us=1, dialogue=0)

    def totals(self, counts: tuple[int, ...] = (0,) * len(messages.COUNTS)) -> None:
        self.send(messages.TOTALS, **TOTALS, counts=counts)

    def end(self) -> None:
        self.channel.close()
        self.stream.close()


class PlayedBroker:
    """The broker and auth of one real front."""

    def __init__(self, site) -> None:
        settings = reading.load(str(site.config)).as_plain()["front"]
        settings["service_calls"] = b""  # it would want no_new_privs, too
        os.makedirs(os.path.join(settings["run_dir"], "empty"), exist_ok=True)
        self.log_path = site.path / "front.log"
        self.log_path.touch()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.control, theirs = channel.pair()
        settings_fd = programs.settings_file(settings)
        with open(self.log_path, "ab") as log:
            keep = [theirs.fileno(), settings_fd, log.fileno(), self.listener.fileno()]
            arguments = [
                "front-process",
                f"--control-fd={keep[0]}",
                f"--settings-fd={keep[1]}",
                f"--log-fd={keep[2]}",
                f"plain:127.0.0.1:0={keep[3]}",
            ]
            self.pid = programs.start_program(arguments, keep)
        theirs.close()
        os.close(settings_fd)
        self.control.settimeout(DEADLINE_S)
        assert channel.receive(self.control)[0].kind == messages.READY
        self.logins, fronts_end = channel.pair()
        self.logins.settimeout(DEADLINE_S)
        channel.send(self.control, messages.encode(messages.ATTACH, front=self.pid), [fronts_end.fileno()])
        fronts_end.close()

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), DEADLINE_S)
        assert client.recv(512).startswith(b"+OK")
        return client

    def login(self, client: socket.socket | None = None) -> tuple[socket.socket, PlayedSession]:
        """Have a client log in; returns it and its login."""
        client = client or self.connect()
        client.sendall(b"USER ann\r\n")
        assert client.recv(512).startswith(b"+OK")
        client.sendall(b"PASS secret\r\n")
        return client, PlayedSession(*channel.receive_octets(self.logins, 65536))

    def events(self, name: str, count: int = 1) -> list[dict]:
        """The events of that name, once there are so many."""

        def found() -> list[dict]:
            lines = self.log_path.read_text().splitlines(keepends=True)
            events = [json.loads(line) for line in lines if line.endswith("\n")]
            return [event for event in events if event["event"] == name]

        wait_until(lambda: len(found()) >= count, what=lambda: f"{name}:\n{self.log_path.read_text()}")
        return found()

    def is_well(self) -> bool:
        """Whether the front still talks to a new client, and has its session logged."""
        client, session = self.login()
        session.accept()
        session.send(messages.SERVING)
        session.totals()
        session.end()
        client.close()
        login_id = session.login["login_id"]
        wait_until(lambda: any(event["login_id"] == login_id for event in self.events("session_closed")))
        return True

    def stop(self) -> None:
        self.control.close()
        try:
            wait_until(lambda: os.waitpid(self.pid, os.WNOHANG)[0] == self.pid)
        except AssertionError:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        finally:
            self.logins.close()
            self.listener.close()


@pytest.fixture(scope="module")
def module_front():
    """One front for all tests of this module: none of them may have harmed it."""
    site = Site()
    broker = PlayedBroker(site)
    try:
        yield broker
    finally:
        broker.stop()
        site.remove()


@pytest.fixture
def front(module_front):
    """A real front, whose broker, auth and sessions the test plays; well before and after."""
    yield module_front
    assert module_front.is_well()


# Sessions


@pytest.mark.parametrize("kind", ["attach", "serve"])
def test_descriptors_that_a_session_sends_stay_open_nowhere(front, kind):
    """A whole frame of a kind that has some: what came with it is closed with the conversation."""
    frame = {"attach": (messages.encode(messages.ATTACH, front=1), 1), "serve": (frames.serve(), 2)}
    octets, count = frame[kind]
    assert front.is_well()  # it has its way to auth by now
    before = len(os.listdir(f"/proc/{front.pid}/fd"))
    for _ in range(8):
        client, session = front.login()
        session.accept()
        channel.send(session.channel, octets, [0] * count)
        login_id = session.login["login_id"]
        wait_until(
            lambda known=login_id: known in [each["login_id"] for each in front.events("frame_rejected")]
        )
        session.end()
        client.close()
    wait_until(lambda: len(os.listdir(f"/proc/{front.pid}/fd")) <= before)


@pytest.mark.parametrize(
    "forged",
    [
        messages.encode(messages.ACCEPTED, user="root", account="root", source="pam", auth_us=1, dialogue=0),
        messages.encode(messages.REFUSED, code="AUTH", reason="x", user="root", source="pam", auth_us=1),
        messages.encode(messages.SERVING),
        messages.encode(messages.TOTALS, **TOTALS, counts=()),
        messages.encode(messages.NOTED, event="broker_stopped", detail="x"),
        messages.encode(messages.NOTED, event="command_received", detail="x"),
        messages.HEADER.pack(messages.VERSION, messages.PIPELINED, 40_002) + b"\x9c\x40" + b"x" * 40_000,
        b"\x01" * 60_000,
        b"\x01",
    ],
    ids=["accepted", "refused", "serving", "no counts", "event", "dialogue", "huge", "noise", "short"],
)
def test_a_forged_frame_ends_the_conversation(front, forged):
    """Its session_closed is written, with the user that auth named, and nothing that was forged."""
    client, session = front.login()
    session.accept()
    session.send(messages.SERVING)
    session.channel.send(forged)
    login_id = session.login["login_id"]
    wait_until(lambda: any(event["login_id"] == login_id for event in front.events("session_closed")))
    closed = [event for event in front.events("session_closed") if event["login_id"] == login_id]
    assert len(closed) == 1
    assert (closed[0]["user"], closed[0]["close_reason"]) == ("ann", "fault")
    assert [event for event in front.events("frame_rejected") if event["login_id"] == login_id]
    log = front.log_path.read_text()
    assert "process_fault" not in log and "broker_stopped" not in log and "command_received" not in log
    session.end()
    client.close()


def test_a_session_can_not_be_refused_in_another_name(front):
    """After auth has said who it is, a refusal on the channel may be forged: its user is auth's."""
    client, session = front.login()
    session.accept()
    session.send(messages.REFUSED, code="AUTH", reason="wrong_password", user="root", source="", auth_us=1)
    session.end()
    assert client.recv(512).startswith(b"-ERR [AUTH]")
    refused = front.events("login_refused")
    assert refused[-1]["user"] == "ann" and all(event["user"] != "root" for event in refused)
    client.close()


def test_a_session_that_floods_the_log_is_cut_off(front):
    """So many notes, and no more: they cost the front its time and the other lines their place."""
    client, session = front.login()
    session.accept()
    session.send(messages.SERVING)
    session.channel.settimeout(DEADLINE_S)
    before = front.log_path.read_text().count("cache_damaged")
    with pytest.raises(OSError):
        for _ in range(100_000):
            session.send(messages.NOTED, event="cache_damaged", detail="x" * 500)
    assert front.log_path.read_text().count("cache_damaged") - before <= 200
    session.end()
    client.close()


def test_control_characters_of_a_session_do_not_reach_the_log(front):
    """A line of the log is one line, whatever a session sends as text."""
    client, session = front.login()
    session.accept()
    session.send(messages.SERVING)
    forged = '"\r\n{"event":"broker_stopped"}\x1b\u202e'
    session.send(messages.NOTED, event="cache_damaged", detail=forged)
    session.send(
        messages.TOTALS,
        close_reason="\r\n\x1b[2J",
        cache="x\n",
        cache_reason=forged,
        fault=forged,
        counts=[2**64 - 1] * len(messages.COUNTS),
    )
    session.end()
    login_id = session.login["login_id"]
    wait_until(lambda: any(event["login_id"] == login_id for event in front.events("session_closed")))
    text = front.log_path.read_bytes()
    assert not re.search(rb"[^\x20-\x7e\n]", text)
    assert all(json.loads(line)["event"] != "broker_stopped" for line in text.splitlines())
    client.close()


def test_a_blocking_stream_does_not_stop_the_front(front):
    """O_NONBLOCK belongs to the open file: a session clears it, and ends without having served."""
    client, session = front.login()
    session.stream.setblocking(True)
    session.accept()
    session.end()
    assert client.recv(512).startswith(b"-ERR [SYS/TEMP]")
    assert front.is_well()
    client.close()


def test_a_lingering_stream_in_a_session_channel_does_not_stop_the_front(front):
    """It lies there unread when all has been said: the front closed it with the channel, and hung."""
    client, session = front.login()
    session.accept()
    session.send(messages.SERVING)
    with _lingering() as stream:
        os.kill(front.pid, signal.SIGSTOP)
        try:
            session.totals()
            channel.send(session.channel, NO_FRAME, [stream.fileno()])
            stream.close()
        finally:
            os.kill(front.pid, signal.SIGCONT)
        assert front.is_well()
    session.end()
    client.close()


@pytest.mark.parametrize("serving", [True, False], ids=["serving", "unserved"])
def test_a_lingering_stream_does_not_stop_the_front(front, serving):
    """SO_LINGER, octets unsent and a client that reads nothing: a close would wait as long as it says."""
    client, session = front.login()
    _fill(session.stream)
    session.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, A_LONG_TIME_S))
    session.stream.close()
    session.accept()
    if serving:
        session.send(messages.SERVING)
    assert front.is_well()
    session.end()
    assert front.is_well()
    client.close()


def test_a_session_that_never_ends_costs_one_greenlet(front):
    """Neither totals nor an end: the front goes on with all others, and waits."""
    stuck = [front.login() for _ in range(20)]
    for _, session in stuck:
        session.accept()
        session.send(messages.SERVING)
    assert front.is_well()
    for client, session in stuck:
        session.end()
        client.close()


def test_a_front_keeps_no_password_for_the_length_of_a_session(front):
    """What was needed from PASS to the hand-over is not referred to afterwards."""
    client = front.connect()
    client.sendall(b"USER ann\r\n")
    client.recv(512)
    client.sendall(b"PASS secret\r\n")
    session = PlayedSession(*channel.receive_octets(front.logins, 65536))
    assert session.login["password"] == b"secret"
    session.accept()
    session.send(messages.SERVING)
    session.end()
    client.close()
    assert "secret" not in front.log_path.read_text()


# A front


def _control_fd(pid: int) -> int:
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return next(int(word.partition("=")[2]) for word in arguments if "--control-fd" in word)


class Captured:
    """The descriptors of a stopped front: its control channel and its way to auth."""

    def __init__(self, server) -> None:
        self.server = server
        server.pop().quit()
        wait_until(lambda: not server.pids("session"))
        (self.pid,) = server.pids("front")
        os.kill(self.pid, signal.SIGSTOP)
        control = _control_fd(self.pid)
        self.control = socket_of(self.pid, control)
        folder = Path(f"/proc/{self.pid}/fd")
        sockets = [int(fd.name) for fd in folder.iterdir() if os.readlink(fd).startswith("socket:")]
        others = [socket_of(self.pid, fd) for fd in sockets if fd != control]
        # Among those the channel of a session that has just ended may still be; that one is the front's own.
        (self.logins,) = [sock for sock in others if _made_by(sock) == server.process.pid]

    def login(self, stream: socket.socket, session_channel: socket.socket, **changes: object) -> None:
        """Send auth a login with these descriptors."""
        octets = messages.encode(messages.LOGIN, **login_fields() | changes)
        channel.send(self.logins, octets, [stream.fileno(), session_channel.fileno()])

    @contextlib.contextmanager
    def stopped(self, process: str) -> Iterator[None]:
        """Have the broker or auth stand still, so that what is sent to it meanwhile is there all at once."""
        pid = self.server.process.pid if process == "broker" else self.server.pids(process)[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def broker_is_well(self) -> bool:
        """Kill the front; returns whether the broker takes note of that."""
        self.end()
        return bool(self.server.wait_for_event("process_ended", ended="front"))

    def end(self) -> None:
        """Kill it."""
        for sock in (self.control, self.logins):
            sock.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def captured(make_server):
    """A front that was taken over. When it is killed another one serves; auth and broker are the same."""
    server = make_server(session__max_per_account=1, session__lock_wait_s=0.1, session__takeover_after_s=0)
    captured = Captured(server)
    before = server.pids("auth")
    yield captured
    captured.end()
    wait_until(lambda: server.pids("front") not in ([], [captured.pid]))
    wait_until(lambda: not server.pids("session"))
    server.pop().quit()
    assert server.pids("auth") == before


@needs_root
@pytest.mark.parametrize(
    "octets",
    [
        messages.encode(messages.READY),
        messages.encode(messages.DRAIN, at_once=1),
        frames.serve(uid=0, gid=0, account=b"root", maildir=b"/root", home=b"/"),
        b"\x01" * 60_000,
        b"\x01",
    ],
    ids=["ready", "drain", "serve", "huge", "short"],
)
def test_a_front_that_sends_the_broker_what_it_may_not_is_ended(captured, octets):
    """A second READY, an order to serve somebody, noise, descriptors: killed, and one line for it."""
    files = [captured.control.fileno()] * 2
    with pytest.raises(OSError):
        for _ in range(1000):
            channel.send(captured.control, octets, files)
            select.select([], [], [], 0.01)
    assert captured.server.wait_for_event("frame_rejected")["sender"] == "front"
    assert captured.server.wait_for_event("process_ended")["signal"] == "SIGKILL"
    assert captured.server.events("session_died") == []


@needs_root
@pytest.mark.parametrize("kind, pid", [(messages.LOG, 0), (messages.ATTACH, 1)])
def test_a_front_gets_nothing_by_saying_that_it_was_lost(captured, kind, pid):
    """Not the log, which it does not hold, nor the way of another front: it was never sent these."""
    channel.send(captured.control, messages.encode(messages.LOST, frame_kind=kind, pid=pid))
    assert captured.server.wait_for_event("frame_rejected")["sender"] == "front"
    captured.control.setblocking(False)
    with pytest.raises(BlockingIOError):
        channel.receive(captured.control)
    captured.control.close()
    assert captured.server.wait_for_event("process_ended")["signal"] == "SIGKILL"


@needs_root
@pytest.mark.parametrize("wrong", ["kind", "noise", "one", "three", "file", "datagrams", "peer"])
def test_auth_hears_no_more_of_a_front_that_sends_it_what_it_may_not(captured, wrong):
    """
    Another kind of frame, noise, descriptors too many or of another kind, the name of another peer.

    Such a front could serve nobody any more: it is ended, and another one started.
    """
    client, stream = _tcp_pair()
    ours, theirs = channel.pair()
    fds = [stream.fileno(), theirs.fileno()]
    octets = messages.encode(messages.LOGIN, **login_fields())
    if wrong == "kind":
        octets = messages.encode(messages.ATTACH, front=1)
    elif wrong == "noise":
        octets = os.urandom(1000)
    elif wrong == "peer":
        octets = messages.encode(messages.LOGIN, **login_fields() | {"peer": "10.1.2.3"})
    elif wrong == "file":
        fds[1] = os.open(captured.server.site.config, os.O_RDWR)
    elif wrong == "datagrams":
        datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        fds[0] = datagrams.fileno()
    else:
        fds = fds[:1] if wrong == "one" else [*fds, 2]
    channel.send(captured.logins, octets, fds)
    assert captured.server.wait_for_event("frame_rejected")["process"] == "auth"
    with pytest.raises(OSError):
        captured.login(stream, theirs)
    rejected = captured.server.wait_for_event("frame_rejected", process="broker")
    assert (rejected["sender"], rejected["pid"]) == ("front", captured.pid)
    for sock in (client, stream, ours, theirs):
        sock.close()


@needs_root
def test_a_channel_that_is_full_does_not_stop_the_broker(captured):
    """The broker refuses a session on a channel that the front has filled meanwhile, and never reads."""
    streams, channels, session = _one_login(captured)
    with captured.stopped("broker"):
        ours, theirs = channel.pair()
        client, stream = _tcp_pair()
        captured.login(stream, theirs)
        assert channel.receive(ours)[0].kind == messages.ACCEPTED
        _fill(theirs)
    assert captured.broker_is_well()
    for sock in (*streams, *channels, session, ours, theirs, client, stream):
        sock.close()


@needs_root
def test_a_lingering_stream_does_not_stop_the_broker(captured):
    """The last copy of a stream with SO_LINGER, octets unsent and a peer that reads nothing."""
    streams, channels, session = _one_login(captured)
    with captured.stopped("broker"):
        ours, theirs = channel.pair()
        client, stream = _lingering_pair()
        captured.login(stream, theirs)
        stream.close()
        theirs.close()
        assert channel.receive(ours)[0].kind == messages.ACCEPTED
    assert captured.broker_is_well()
    for sock in (*streams, *channels, session, ours, client):
        sock.close()


@needs_root
def test_a_front_that_never_reads_keeps_no_session(captured):
    """A session whose channel is full ends in order, and gives up telling how."""
    streams, (ours, theirs), session = _one_login(captured)
    client, _ = streams
    _fill(session)
    client.sendall(b"QUIT\r\n")
    assert client.recv(512).startswith(b"+OK")
    client.close()
    assert captured.server.wait_for_event("session_unreported")
    wait_until(lambda: not captured.server.pids("session"))
    for sock in (*streams, ours, theirs, session):
        sock.close()


@needs_root
def test_a_session_without_its_pipelined_octets_is_taken_over(captured):
    """A front that puts nothing into the channel has a session wait for it: until a newer login comes."""
    client, stream = _tcp_pair()
    ours, theirs = channel.pair()
    captured.login(stream, theirs)
    assert channel.receive(ours)[0].kind == messages.ACCEPTED
    wait_until(lambda: len(captured.server.pids("session")) == 1)
    (waiting,) = captured.server.pids("session")
    wait_until(lambda: _sleeps(waiting))
    os.kill(waiting, signal.SIGUSR1)
    wait_until(lambda: not captured.server.pids("session"))
    for sock in (client, stream, ours, theirs):
        sock.close()


@needs_root
def test_a_flood_of_logins_is_bounded(captured):
    """Logins without end, answers never read: auth keeps its descriptors, and its temper."""
    (auth,) = captured.server.pids("auth")
    before = len(os.listdir(f"/proc/{auth}/fd"))
    captured.logins.setblocking(False)
    kept = []
    for number in range(600):
        client, stream = _tcp_pair()
        ours, theirs = channel.pair()
        kept += [client, ours]
        try:
            captured.login(stream, theirs, name=b"nobody%d" % number)
        except BlockingIOError:
            select.select([], [captured.logins], [], DEADLINE_S)
        finally:
            stream.close()
            theirs.close()
    captured.end()
    wait_until(lambda: len(os.listdir(f"/proc/{auth}/fd")) <= before + 2)
    for sock in kept:
        sock.close()


def login_fields() -> dict[str, object]:
    """A login of the test account."""
    return {
        "login_id": 1,
        "name": b"user0",
        "password": PASSWORD.encode(),
        "mechanism": "USER",
        "peer": "127.0.0.1",
        "peer_port": 1,
        "local": "127.0.0.1",
        "local_port": 110,
        "received_ms": 0,
        "dialogue": 0,
        "pipelined": 0,
        "prepared_name": b"",
        "prepared_password": b"",
        "utf8": 0,
        "language": "",
    }


def _one_login(captured):
    """A session that serves: (client, stream), (our end of its channel, the other), the session's end."""
    client, stream = _tcp_pair()
    ours, theirs = channel.pair()
    session = theirs.dup() if hasattr(theirs, "dup") else socket.socket(fileno=os.dup(theirs.fileno()))
    captured.login(stream, theirs)
    assert client.recv(512).startswith(b"+OK")
    for kind in (messages.ACCEPTED, messages.SERVING):
        assert channel.receive(ours)[0].kind == kind
    return (client, stream), (ours, theirs), session


def _made_by(sock: socket.socket) -> int:
    """The process that made a pair of unix sockets; 0 for another kind."""
    return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), DEADLINE_S)
        return client, listener.accept()[0]


def _lingering_pair() -> tuple[socket.socket, socket.socket]:
    """The same with octets unsent, which whoever closes the last copy of the server's end waits for."""
    client, stream = _tcp_pair()
    _fill(stream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, A_LONG_TIME_S))
    return client, stream


@contextlib.contextmanager
def _lingering() -> Iterator[socket.socket]:
    """Such a stream, to be closed within; it lingers as long as its client is there."""
    client, stream = _lingering_pair()
    with client:
        yield stream


def _fill(sock: socket.socket) -> None:
    """Fill a socket's way to a peer that does not read."""
    chunk = b"x" * 65536 if sock.type == socket.SOCK_STREAM else b"x"
    try:
        while True:
            sock.send(chunk, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return


@needs_root
def test_a_lingering_stream_does_not_stop_auth(captured):
    """The last copy of the stream of a refused login, with SO_LINGER and octets unsent."""
    ours, theirs = channel.pair()
    client, stream = _lingering_pair()
    captured.login(stream, theirs, password=b"wrong")
    stream.close()
    theirs.close()
    assert channel.receive(ours)[0].kind == messages.REFUSED
    captured.end()
    wait_until(lambda: captured.server.pids("front") not in ([], [captured.pid]))
    captured.server.pop(timeout_s=5).quit()
    for sock in (ours, client):
        sock.close()


NO_FRAME = b"noise"
MANY = 40  # descriptors: more than any frame has


@needs_root
@pytest.mark.parametrize("to", ["broker", "auth"])
def test_a_lingering_stream_with_what_may_not_be_sent_stops_nobody(captured, to):
    """The last copy of a stream that lingers, with a bad frame and unread behind it: broker and auth hung."""
    control = captured.control if to == "broker" else captured.logins
    with _lingering() as with_it, _lingering() as behind_it:
        with captured.stopped(to):
            channel.send(control, NO_FRAME, [with_it.fileno()] * MANY)
            channel.send(control, NO_FRAME, [behind_it.fileno()])
            with_it.close()
            behind_it.close()
        assert captured.broker_is_well()
        wait_until(lambda: captured.server.pids("front") not in ([], [captured.pid]))
        captured.server.pop().quit()


@needs_root
@pytest.mark.parametrize("by", ["broker", "auth"])
def test_a_lingering_stream_in_what_came_with_a_refused_login_stops_nobody(captured, by):
    """It is closed with channel or stream by whoever refuses: a wrong password, or a session is there."""
    streams, channels, session = _one_login(captured)
    ours, theirs = channel.pair()
    client, stream = socket.socketpair()  # as with TLS
    with _lingering() as in_channel, _lingering() as in_stream:
        with captured.stopped("broker"):
            channel.send(ours, NO_FRAME, [in_channel.fileno()])
            socket.send_fds(client, [NO_FRAME], [in_stream.fileno()])
            in_channel.close()
            in_stream.close()
            captured.login(stream, theirs, **({"password": b"wrong"} if by == "auth" else {}))
            stream.close()
            theirs.close()
            assert channel.receive(ours)[0].kind == (messages.REFUSED if by == "auth" else messages.ACCEPTED)
        assert captured.broker_is_well()
        wait_until(lambda: captured.server.pids("front") not in ([], [captured.pid]))
        # Auth decides, and the broker refuses, as before.
        with pytest.raises(poplib.error_proto, match="IN-USE"):
            captured.server.pop()
    for sock in (*streams, *channels, session, ours, client):
        sock.close()


# Auth


@needs_root
@pytest.mark.parametrize("octets", [4, 13, 40])
def test_a_serve_frame_cut_short_does_not_end_the_broker(make_server, octets):
    """It takes no more of a frame than it needs, and found out too late that there was not even that."""
    server = make_server()
    (auth,) = server.pids("auth")
    whole = messages.encode(
        messages.SERVE, uid=1, maildir=b"/nowhere", login_id=1, account=b"a", gid=1, groups=[], home=b"/",
        peer="", received_ms=0, removal="", dialogue=0, pipelined=0, utf8=0, language="",
    )  # fmt: skip
    client, stream = _tcp_pair()
    ours, theirs = channel.pair()
    control = socket_of(auth, _control_fd(auth))
    channel.send(control, whole[:octets], [stream.fileno(), theirs.fileno()])
    for each in (control, client, stream, ours, theirs):
        each.close()
    assert server.wait_for_event("frame_rejected")["sender"] == "auth"
    if octets < 14:
        wait_until(lambda: server.pids("auth") not in ([], [auth]))
    server.pop().quit()
    assert server.process.poll() is None

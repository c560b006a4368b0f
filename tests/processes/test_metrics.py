"""The metrics process: what it tells Prometheus, whether all is well, and that nobody needs it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.serving import PASSWORD, ROOT, Server, Site, wait_until

ON = {"metrics__listen": ["127.0.0.1:0"]}


def base(server: Server, count: int = 1) -> str:
    return "http://" + server.wait_for_event("metrics_started", count)["listen"][0]


def get(url: str, accept: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(url: str) -> dict[str, float]:
    """Every series and its number."""
    status, text = get(url + "/metrics")
    assert status == 200
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(number) for name, _, number in lines}


def wait_for(url: str, **_: object):
    """Return a function that waits until a series has a value."""

    def wait(name: str, value: float) -> dict[str, float]:
        wait_until(lambda: metrics(url).get(name) == value, what=lambda: f"{name} {value}: {metrics(url)}")
        return metrics(url)

    return wait


@pytest.fixture
def counted(make_server) -> Server:
    """gpop with metrics and one account."""
    return make_server(accounts_cache__enabled=True, **ON)


@pytest.fixture(scope="module")
def lasting():
    """The same, for all tests of this module that leave it as it is."""
    site = Site(**ON)
    try:
        with Server(site) as server:
            yield server
            assert not server.faults()
    finally:
        site.remove()


def test_a_session_is_counted_as_it_is_logged(counted) -> None:
    """Outcome, messages, octets and times are those of session_closed; a refusal is counted by its code."""
    url = base(counted)
    for _ in range(3):
        counted.site.deliver(b"Subject: x\n\nhello\n")
    with counted.login() as client:
        for command in ("RETR 1", "RETR 2", "TOP 3 0"):
            client.ask(command)
            client.lines()
        client.ask("DELE 1")
        client.ask("QUIT")
    closed = counted.wait_for_event("session_closed")
    with counted.connect() as client:
        client.ask("USER user0")
        client.ask("PASS wrong")
    found = wait_for(url)("gpop_open_connections", 0)
    assert found['gpop_sessions_total{close_reason="quit"}'] == 1
    assert found['gpop_retrieved_messages_total{command="RETR"}'] == 2
    assert found['gpop_retrieved_messages_total{command="TOP"}'] == 1
    assert found['gpop_retrieved_octets_total{command="RETR"}'] == closed["retr_octets"]
    assert found["gpop_sent_octets_total"] == closed["octets_sent"]
    assert found['gpop_marked_messages_total{reason="dele"}'] == 1
    assert found['gpop_removed_messages_total{outcome="removed"}'] == 1
    assert found['gpop_statcache_seconds_count{outcome="rebuild"}'] == 1
    seconds = found['gpop_statcache_seconds_sum{outcome="rebuild"}']
    assert seconds == pytest.approx(closed["cache_ms"] / 1000, abs=1e-6)
    assert found["gpop_session_seconds_sum"] == pytest.approx(closed["duration_ms"] / 1000, abs=1e-5)
    assert found['gpop_login_decision_seconds_count{source="passwd-file"}'] == 2
    assert found['gpop_logins_total{result="accepted",source="passwd-file"}'] == 1
    assert sum(number for name, number in found.items() if 'result="AUTH"' in name) == 1
    assert found["gpop_fork_seconds_count"] == 1
    assert found["gpop_connections_total"] == 2
    assert found['gpop_events_total{event="session_closed"}'] == 1
    bucket = 'gpop_statcache_seconds_bucket{le="+Inf",outcome="rebuild"}'
    assert found[bucket] == 1


def test_what_is_the_case_now(counted) -> None:
    """Connections and sessions go up and down again; penalties and the auth cache are auth's to count."""
    wait = wait_for(base(counted))
    with counted.login() as one:
        with counted.connect():
            wait("gpop_open_connections", 2)
            found = wait("gpop_running_sessions", 1)
            assert found['gpop_processes{process="front"}'] == 1
            assert found["gpop_listening_sockets"] == 1
        one.ask("QUIT")
    wait("gpop_running_sessions", 0)
    wait("gpop_open_connections", 0)

    def is_remembered() -> bool:  # not while the passwd-file is so new that it may change unseen
        with counted.login() as one:
            one.ask("QUIT")
        return metrics(base(counted))["gpop_auth_cache_entries"] == 1

    wait_until(is_remembered, what="the auth cache to have it")
    with counted.login() as one:
        one.ask("QUIT")
    counted.wait_for_event("session_closed", auth_source="cache")
    assert metrics(base(counted))['gpop_logins_total{result="accepted",source="cache"}'] > 0


def test_no_series_is_of_a_clients_making(lasting) -> None:
    """Whatever clients say, the set of series stays what it was."""
    url = base(lasting)
    before = metrics(url).keys()
    for name in ('x"} 1', "gpop_logins_total{", "\u00fc\x01", "127.0.0.1"):
        with lasting.connect() as client:
            client.send(f"USER {name}\r\nPASS {name}\r\nQUIT\r\n".encode())
            client.rest()
    lasting.wait_for_event("login_refused", 3)
    assert metrics(url).keys() == before


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_of(lasting) -> None:
    """Names, types, helps and units are as Prometheus wants them."""
    status, text = get(base(lasting) + "/metrics")
    assert status == 200
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_both_forms_of_exposition(lasting) -> None:
    """Prometheus asks for OpenMetrics first; a person with curl gets plain text."""
    url = base(lasting) + "/metrics"
    _, text = get(url, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert text.endswith("# EOF\n")
    assert not get(url)[1].endswith("# EOF\n")
    address = ("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0]))
    for accept in (
        "application/openmetrics-text;version=abc",
        "text/plain;version=1\nX-Evil: y",
        ";=,;\x00\xff",
    ):
        with socket.create_connection(address, 20) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nAccept: " + accept.encode("latin-1") + b"\r\n\r\n")
            head = client.makefile("rb").read().partition(b"\r\n\r\n")[0]
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert not re.search(rb"abc|Evil|\x00", head)


def test_numbers_outlive_processes(counted) -> None:
    """A front that dies, a reload: what was counted stays, what was the case is none any more."""
    url = base(counted)
    with counted.login() as client:
        client.ask("QUIT")
    wait_for(url)('gpop_sessions_total{close_reason="quit"}', 1)
    with counted.connect():
        wait_for(url)("gpop_open_connections", 1)
        os.kill(counted.pids("front")[0], signal.SIGKILL)
        wait_for(url)("gpop_open_connections", 0)
    counted.wait_for_event("front_started", 2)
    found = wait_for(url)('gpop_process_restarts_total{process="front"}', 1)
    assert found['gpop_events_total{event="process_ended"}'] == 1
    counted.process.send_signal(signal.SIGHUP)
    counted.wait_for_event("reload_finished")
    url = base(counted, 2)
    with counted.login() as client:
        client.ask("QUIT")
    found = wait_for(url)('gpop_sessions_total{close_reason="quit"}', 2)
    assert found['gpop_processes{process="broker"}'] == 1


def test_a_dead_metrics_process_is_started_again(counted) -> None:
    """Nobody misses it meanwhile, and the new one knows all that has been counted."""
    base(counted)
    os.kill(counted.pids("metrics")[0], signal.SIGKILL)
    with counted.login() as client:
        client.ask("QUIT")
    ended = counted.wait_for_event("process_ended", ended="metrics")
    assert ended["signal"] == "SIGKILL"
    url = base(counted, 2)
    found = wait_for(url)('gpop_process_restarts_total{process="metrics"}', 1)
    assert found['gpop_sessions_total{close_reason="quit"}'] == 1


def test_a_stalled_metrics_process_hurts_nobody(make_server) -> None:
    """Logins, a reload and the end of gpop wait for it no moment."""
    server = make_server(**ON)
    base(server)
    stalled = server.pids("metrics")[0]
    os.kill(stalled, signal.SIGSTOP)
    for _ in range(3):
        with server.login() as client:
            client.ask("QUIT")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_event("reload_finished")
    url = base(server, 2)
    wait_until(lambda: stalled not in server.pids("metrics"), what="the stalled one to be ended")
    assert wait_for(url)("gpop_connections_total", 3)
    os.kill(server.pids("metrics")[0], signal.SIGSTOP)
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 10


def test_a_start_does_not_need_it(make_server) -> None:
    """An address that is taken costs the metrics, not the mail; and it is tried again until it is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = make_server(metrics__listen=[address])
        fault = server.wait_for_event("process_fault")
        assert "no metrics" in fault["problem"]
        with server.login() as client:
            client.ask("QUIT")
    server.wait_for_event("metrics_started")
    assert get(f"http://{address}/healthz") == (200, "ok\n")


def test_health_is_that_of_the_processes(make_server) -> None:
    """A broker, an auth or fronts that hang are noticed, and named."""
    server = make_server(**ON)
    url = base(server)
    assert get(url + "/healthz") == get(url + "/readyz") == (200, "ok\n")
    for kind, words in (("auth", "auth does not answer"), ("front", "no front accepts connections")):
        pid = server.pids(kind)[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            missed = 503, words + "\n"
            wait_until(lambda: get(url + "/readyz") == missed, what=words)  # noqa: B023
            assert get(url + "/healthz")[0] == 200
        finally:
            os.kill(pid, signal.SIGCONT)
        assert get(url + "/readyz") == (200, "ok\n")
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        missed = 503, "the broker does not answer\n"
        wait_until(lambda: get(url + "/healthz") == missed, what="the broker to be missed")
        assert get(url + "/metrics")[0] == 200
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def test_no_client_hangs_it(lasting) -> None:
    """Silent, slow, endless and nonsensical ones are let go in time, and others are answered meanwhile."""
    url = base(lasting)
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    silent = [socket.create_connection(address, 20) for _ in range(20)]
    slow = socket.create_connection(address, 20)
    slow.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    assert metrics(url)
    for octets, status in (
        (b"\x00\xff" * 9 + b"\r\n\r\n", b"400"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, b"431"),
    ):
        with socket.create_connection(address, 20) as client:
            client.sendall(octets)
            assert client.makefile("rb").readline().split()[1] == status
    with socket.create_connection(address, 20) as client:
        client.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
        assert re.fullmatch(rb"HTTP/1.1 200 OK\r\n(?:[^\r\n]+\r\n)+\r\n", client.makefile("rb").read())
    endless = socket.create_connection(address, 20)
    endless.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
    with contextlib.suppress(OSError):  # it is closed, however much there is still to come
        while True:
            endless.sendall(b"x" * 65536)
    endless.close()
    for client in (*silent, slow):
        assert client.recv(1) == b""  # closed, within the time of this socket
        client.close()


def test_when_certificates_end(make_server, tmp_path) -> None:
    """The end of each certificate is there, by path; the key is no concern of this process."""
    authority = Authority(tmp_path)
    pair = authority.issue("mail.example.org")
    server = make_server(tls__certificates=[pair], **ON)
    found = metrics(base(server))
    loaded = server.wait_for_event("certificate_loaded")
    expected = time.mktime(time.strptime(loaded["not_after"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert found[f'gpop_certificate_expiry_timestamp_seconds{{path="{pair[0]}"}}'] == expected


@pytest.mark.skipif(not ROOT, reason="needs root: without it nobody can become another user")
def test_it_has_no_rights(lasting) -> None:
    """The service user, in the empty jail; it can read tallies and write none; sessions have none at all."""
    base(lasting)
    pid = lasting.pids("metrics")[0]
    assert os.stat(f"/proc/{pid}").st_uid != 0
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert "0" not in status["Uid"].split()
    assert os.listdir(f"/proc/{pid}/root/") == []
    for name in os.listdir(f"/proc/{pid}/fd"):
        if "gpop-tally" in os.readlink(f"/proc/{pid}/fd/{name}"):
            flags = Path(f"/proc/{pid}/fdinfo/{name}").read_text().split("flags:")[1].split()[0]
            assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
    with lasting.login() as client:
        session = lasting.pids("session")[0]
        assert "gpop-tally" not in Path(f"/proc/{session}/maps").read_text()
        assert not [
            fd
            for fd in os.listdir(f"/proc/{session}/fd")
            if "gpop-tally" in os.readlink(f"/proc/{session}/fd/{fd}")
        ]
        client.ask("QUIT")


def test_a_reload_turns_it_on_and_off(make_server) -> None:
    """The broker begins to count then; what goes on from before is counted from there."""
    server = make_server()
    server.site.write_config(**ON)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_event("reload_finished")
    url = base(server)
    with server.login() as client:
        client.ask("QUIT")
    found = wait_for(url)('gpop_sessions_total{close_reason="quit"}', 1)
    assert found["gpop_fork_seconds_count"] == 1
    server.site.write_config(metrics__listen=[])
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_event("reload_finished", 2)
    wait_until(lambda: not server.pids("metrics"), what="the metrics process to end")


def test_nothing_is_counted_if_nobody_asked_for_it(make_server) -> None:
    """Off by default: no process, no memory for it."""
    server = make_server()
    assert server.pids("metrics") == []
    front = server.pids("front")[0]
    assert "gpop-tally" not in Path(f"/proc/{front}/maps").read_text()


def test_no_secret_is_in_it(lasting) -> None:
    """Nobody's name, address or password."""
    url = base(lasting)
    with lasting.login() as client:
        client.ask("QUIT")
    lasting.wait_for_event("session_closed")
    text = get(url + "/metrics")[1]
    assert not [word for word in (PASSWORD, "user0", "127.0.0.1") if word in text]

"""The filter and the jail in ops/fail2ban, by the real fail2ban on lines that a real gpop has written."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ROOT, Dialogue, Server, Site, wait_until

OPS = Path(__file__).parent.parent.parent / "ops" / "fail2ban"
FILTER = OPS / "filter.d" / "gpop.conf"
BALANCER = "127.0.7.1"
INNOCENT = "203.0.113.99"
# Names that look like something else, to somebody who reads carelessly.
HOSTILE = (
    INNOCENT,
    f'x", "peer": "{INNOCENT}", "code": "AUTH", "y": "',
    f'x\\", "peer": "{INNOCENT}',
    f'x\\\\", "event": "login_refused", "process": "front", "peer": "{INNOCENT}", "code": "AUTH",',
    f'{{"ts": "2026-11-25T03:19:17.923Z", "event": "login_refused", "peer": "{INNOCENT}"}}',
    f"Nov 25 03:19:17 host gpop[1]: {INNOCENT}",
    f"<HOST> {INNOCENT}",
    "\u2028\u0085line",
    "x\x0b\x1b]0;y",
    "{" * 200,
)

pytestmark = pytest.mark.skipif(not shutil.which("fail2ban-regex"), reason="fail2ban is not installed")


def failures(lines: str, folder: Path) -> list[str]:
    """The address of each line that fail2ban takes for a failure."""
    log = folder / "lines"
    log.write_text(lines.rstrip("\n") + "\n")  # a line without an end is not read
    command = ["fail2ban-regex", "-c", "/etc/fail2ban", "-o", "ip", str(log), str(FILTER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "ERROR" not in done.stderr, done.stderr
    return done.stdout.split()


def guess(server: Server, name: str, source: str = "127.0.0.1", header: str = "", at: int = 0) -> None:
    """One wrong password, from a source, perhaps by way of a balancer."""
    host, _, port = server.addresses[at].rpartition(":")
    with Dialogue(socket.create_connection((host, int(port)), 20, source_address=(source, 0))) as client:
        client.send(header.encode())
        client.line()
        client.ask(f"USER {name}")
        assert client.ask("PASS wrong").startswith(b"-ERR")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """gpop with an address for a balancer and one for everybody."""
    site = Site(
        server__listen=["127.0.0.1:0", "127.0.0.2:0"],
        server__proxy_listen=["127.0.0.2:0"],
        server__proxy_networks=[f"{BALANCER}/32"],
        server__max_connections_per_address=4,
        accounts__cleartext="always",
        accounts__refusal_time_s=0,
        accounts__trusted_networks=["127.0.0.1/32"],
    )
    try:
        with Server(site) as running:
            yield running
    finally:
        site.remove()


def test_a_failure_is_the_clients_whatever_its_name(server, tmp_path) -> None:
    """One line for each; no user name makes it another's, or none, or more than one."""
    for number, name in enumerate(HOSTILE):
        guess(server, name, f"127.0.9.{number + 1}")
    server.wait_for_event("login_refused", len(HOSTILE))
    lines = server.log_text().splitlines()
    # The same as it is, and as two kinds of syslog daemons file it.
    forms = ("", "Nov  5 03:19:17 host gpop[7]: ", "2026-11-25T03:19:17.925311+01:00 host gpop[7]: ")
    found = failures("\n".join(form + line for form in forms for line in lines), tmp_path)
    assert found == [f"127.0.9.{number + 1}" for number in range(len(HOSTILE))] * len(forms)


def test_behind_a_balancer_it_is_the_client(server, tmp_path) -> None:
    """Both versions of IP; never the balancer, which stands in the line as well."""
    before = len(server.log_text())
    clients = {"TCP4": "192.0.2.7", "TCP6": "2001:db8::7"}
    for protocol, client in clients.items():
        local = "198.51.100.1" if protocol == "TCP4" else "2001:db8::1"
        guess(server, "somebody", BALANCER, f"PROXY {protocol} {client} {local} 5 110\r\n", at=1)
        server.wait_for_event("login_refused", peer=client)
    lines = server.log_text()[before:]
    assert lines.count(f'"proxy": "{BALANCER}"') == len(clients)
    assert failures(lines, tmp_path) == list(clients.values())


def test_floods_count_and_temporary_refusals_do_not(server, tmp_path) -> None:
    """Too many connections are the peer's doing; our own faults, and a user who comes too often, are not."""
    before = len(server.log_text())
    host, _, port = server.addresses[0].rpartition(":")
    many = [
        socket.create_connection((host, int(port)), 20, source_address=("127.0.5.5", 0)) for _ in range(5)
    ]
    server.wait_for_event("limit_reached")
    for each in many:
        each.close()
    guess(server, "nobody", "127.0.5.6")
    server.wait_for_event("login_refused", peer="127.0.5.6")
    lines = server.log_text()[before:]
    refused = [line for line in lines.splitlines() if "login_refused" in line]
    assert len(refused) == 1
    codes = ("SYS/TEMP", "LOGIN-DELAY", "IN-USE", "SYS/PERM")
    others = [refused[0].replace('"AUTH"', f'"{code}"').replace("127.0.5.6", INNOCENT) for code in codes]
    assert failures("\n".join([*others, lines]), tmp_path) == ["127.0.5.5", "127.0.5.6"]


def test_no_other_programs_line_is_taken_for_ours(tmp_path) -> None:
    """In a file that many write to, what a stranger has another program say bans nobody."""

    def line(peer: str) -> str:
        return (
            '{"ts": "2026-11-25T03:19:17.923Z", "level": "warning", "event": "login_refused", '
            f'"process": "front", "peer": "{peer}", "user": "x", "code": "AUTH", "z": 1}}'
        )

    others = (
        f"Nov 25 03:19:17 host other[7]: {line(INNOCENT)}",
        f"Nov 25 03:19:17 host other[7]: user=<Nov 25 03:19:17 host gpop[7]: {line(INNOCENT)}>",
        f"Nov 25 03:19:17 host other[7]: gpop[7]: {line(INNOCENT)}",
        f"x{line(INNOCENT)}",
        f"[{line(INNOCENT)}]",
    )
    ours = f"Nov 25 03:19:17 host gpop[7]: {line('192.0.2.1')}"
    assert failures("\n".join([ours, *others]), tmp_path) == ["192.0.2.1"]


@pytest.mark.skipif(not ROOT, reason="needs root, as fail2ban-server does")
def test_the_jail_bans(server, tmp_path) -> None:
    """The real fail2ban with our two files, and a .local beside them: the guesser is banned, nobody else."""
    config = tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", config, ignore=shutil.ignore_patterns("jail.d", "*.local"))
    (config / "jail.d").mkdir()
    shutil.copy(FILTER, config / "filter.d")
    shutil.copy(OPS / "jail.d" / "gpop.conf", config / "jail.d")
    local = f"[gpop]\nlogpath = {server.log_path}\nmaxretry = 3\nbanaction = dummy\nbackend = polling\n"
    (config / "jail.d" / "gpop.local").write_text(local)
    # Nothing that is done here concerns the machine's firewall.
    (config / "action.d" / "dummy.conf").write_text("[Definition]\nactionban = true\nactionunban = true\n")
    places = ["-c", str(config), "-s", str(tmp_path / "socket"), "-p", str(tmp_path / "pid")]
    more = ["--logtarget", str(tmp_path / "f2b.log"), "--syslogsocket", "auto"]
    (config / "fail2ban.local").write_text("[Definition]\ndbfile = None\n")
    daemon = subprocess.Popen(["fail2ban-server", "-f", *places, *more, "start"], stdout=subprocess.DEVNULL)
    try:
        client = ["fail2ban-client", *places, "status", "gpop"]

        def status() -> str:
            return subprocess.run(client, capture_output=True, text=True, check=False).stdout

        wait_until(lambda: "Banned IP list" in status(), what="the jail")
        for _ in range(3):
            guess(server, INNOCENT, "127.0.6.6")
        wait_until(lambda: "127.0.6.6" in status(), what=lambda: f"a ban: {status()}")
        assert INNOCENT not in status()
        assert "Currently banned:\t1\n" in status()
    finally:
        daemon.terminate()
        daemon.wait(20)

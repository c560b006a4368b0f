"""
What TLS costs, beside other servers.

    python -m loadtest.bench.tls [--servers gpop,dovecot-tuned,...] [--polls N] [--rounds N] [--only polls]

For each server, with one certificate (RSA, 2,048 bits) and the servers' own defaults for TLS:
CPU of a poll (STAT, UIDL, QUIT of 20 messages) in cleartext, with TLS from the start, by STLS, and with TLS
that is resumed, for which the ticket of the last connection is used, as a client that keeps it can; CPU of
RETR of one message of 50 MB, in cleartext and inside TLS; and the memory of a connection inside TLS that
waits before the login. One client, one connection after the other.

All servers run at the same time and take turns within each round. Printed are medians, and the median
of the rounds' ratios to `dovecot-tuned`: what else the machine does falls on both. Of gpop also which of its
processes had how much of a poll. The CPU is the server's alone. Needs root, as servers with shared
processes do, and openssl.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from loadtest.bench import cpu, maildrops
from loadtest.bench.accounts import Accounts
from loadtest.bench.kinds import kind_of
from loadtest.bench.maildrops import PASSWORD, Maildrop, Post
from loadtest.bench.results import TUNED
from loadtest.bench.servers import Server

SERVERS = "gpop,gpop-reuse,dovecot-tuned"
CLEARTEXT, IMPLICIT, STLS, RESUMED = WAYS = ("cleartext", "implicit", "stls", "resumed")
POLLED, LARGE = "20", "big"
IDLE = 200
TIMEOUT_S = 60.0
RECEIVE_OCTETS = 1 << 18


class Client:
    """One connection that has been greeted, and has logged in if that is asked for."""

    tls: ssl.SSLSocket | None = None
    ticket: ssl.SSLSession | None = None
    resumed = False

    def __init__(self, server: Server, way: str, session: ssl.SSLSession | None = None) -> None:
        port = server.tls_port if way in (IMPLICIT, RESUMED) else server.port
        self.sock: socket.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if way in (IMPLICIT, RESUMED):
            self._begin_tls(session)
        self._line()
        if way == STLS:
            self.ask(b"STLS")
            self._begin_tls(None)

    def _begin_tls(self, session: ssl.SSLSession | None) -> None:
        self.sock = self.tls = CONTEXT.wrap_socket(self.sock, session=session)

    def _line(self) -> bytes:
        octets = b""
        while not octets.endswith(b"\n"):
            octets += self._receive()
        return octets

    def _receive(self) -> bytes:
        octets = self.sock.recv(RECEIVE_OCTETS)
        if not octets:
            raise ConnectionError("the server has closed")
        return octets

    def ask(self, command: bytes, multiline: bool = False) -> int:
        """Send a command; returns the octets of the answer, which must be a good one."""
        self.sock.sendall(command + b"\r\n")
        octets = total = self._line()
        if not octets.startswith(b"+OK"):
            raise ConnectionError(f"{command!r}: {octets!r}")
        count, tail = len(total), octets[-5:]
        while multiline and not tail.endswith(b"\r\n.\r\n"):
            octets = self._receive()
            count, tail = count + len(octets), (tail + octets[-5:])[-5:]
        return count

    def log_in(self, maildrop: Maildrop) -> None:
        self.ask(b"USER " + maildrop.name.encode())
        self.ask(b"PASS " + PASSWORD.encode())

    def end(self) -> None:
        """Close, and keep what a later connection may be resumed with."""
        if self.tls:
            self.ticket, self.resumed = self.tls.session, bool(self.tls.session_reused)
        self.close()

    def close(self) -> None:
        self.sock.close()


CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE


def poll(server: Server, way: str, maildrop: Maildrop, session: ssl.SSLSession | None = None) -> Client:
    """A session that finds nothing new; returns its connection, closed."""
    client = Client(server, way, session)
    client.log_in(maildrop)
    client.ask(b"STAT")
    client.ask(b"UIDL", multiline=True)
    client.ask(b"QUIT")
    client.end()
    return client


def retrieve(server: Server, way: str, maildrop: Maildrop) -> None:
    client = Client(server, way)
    client.log_in(maildrop)
    if client.ask(b"RETR 1", multiline=True) < maildrop.octets:
        raise ConnectionError("the message came too short")
    client.ask(b"QUIT")
    client.close()


def polls_ms(server: Server, way: str, polls: int) -> dict[str, float]:
    """
    Milliseconds of CPU for one poll: of the whole server as "", and by process where that is known.

    For a way that resumes also what share was: with the ticket of another process that is not possible.
    """
    drops, resumes = server.tree.of(POLLED), way == RESUMED
    last, resumed = poll(server, way, drops[0]), 0
    before, parts = cpu.settled(server.meter), server.by_process()
    for number in range(polls):
        last = poll(server, way, drops[number % len(drops)], last.ticket if resumes else None)
        resumed += last.resumed
    used = {"": (cpu.settled(server.meter) - before).total}
    used |= {part: seconds - parts[part] for part, seconds in server.by_process().items()}
    figures = {part: seconds / polls * 1e3 for part, seconds in used.items()}
    return figures | ({"share": resumed / polls} if resumes else {})


def large_ms(server: Server, way: str) -> float:
    """Milliseconds of CPU for one RETR of 50 MB, its login included."""
    times = 5
    before = cpu.settled(server.meter)
    for _ in range(times):
        retrieve(server, way, server.tree.of(LARGE)[0])
    return (cpu.settled(server.meter) - before).total / times * 1e3


def idle_kib(server: Server) -> float:
    """KiB of all processes of the server for a connection that is greeted inside TLS and says nothing."""
    first = [Client(server, "implicit") for _ in range(20)]
    before = _private_kib(server)
    with contextlib.ExitStack() as clients:
        for _ in range(IDLE):
            clients.callback(Client(server, "implicit").close)
        found = (_private_kib(server) - before) / IDLE
    for client in first:
        client.close()
    return found


def _private_kib(server: Server) -> int:
    total = 0
    for pid in server.meter.pids():
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return total


# What is printed: one figure of every round, by what it is and by server.
Figures = dict[str, dict[str, list[float]]]


def measure_polls(server: Server, polls: int, found: Figures) -> None:
    for way in WAYS:
        for part, figure in polls_ms(server, way, polls).items():
            name = f"poll, {way}, {part}" if part else f"poll, {way}"
            found[name][server.name].append(figure)


def measure_retr(server: Server, _polls: int, found: Figures) -> None:
    for way in (CLEARTEXT, IMPLICIT):
        found[f"RETR of 50 MB, {way}"][server.name].append(large_ms(server, way))


def measure_idle(server: Server, _polls: int, found: Figures) -> None:
    found["idle connection inside TLS: KiB"][server.name].append(idle_kib(server))


MEASURES: dict[str, Callable[[Server, int, Figures], None]] = {
    "polls": measure_polls,
    "retr": measure_retr,
    "idle": measure_idle,
}


def measure(servers: list[Server], what: list[str], polls: int, rounds: int) -> Figures:
    """Measure every server in every round, after each has been warmed."""
    found: Figures = defaultdict(lambda: defaultdict(list))
    for server in servers:
        for way in WAYS[:3]:
            polls_ms(server, way, 20)
    for name in what:
        for _ in range(rounds):
            # Nobody is always the first, or always follows the same one.
            servers.append(servers.pop(0))
            for server in servers:
                MEASURES[name](server, polls, found)
    return found


def report(found: Figures, names: list[str]) -> str:
    """Return the table: medians in ms (or what is named), with the ratio to Dovecot tuned in brackets."""
    lines = [f"{'':<40}" + "".join(f"{name:>20}" for name in names)]
    for what, by_server in found.items():
        cells = []
        for name in names:
            figures, theirs = by_server.get(name), by_server.get(TUNED)
            cell = f"{statistics.median(figures):.2f}" if figures else ""
            if figures and theirs and name != TUNED and not what.endswith("share"):
                ratios = [one / other for one, other in zip(figures, theirs, strict=True)]
                cell += f" ({statistics.median(ratios):.2f})"
            cells.append(f"{cell:>20}")
        lines.append(f"{what:<40}" + "".join(cells))
    return "\n".join(lines)


def certificate(folder: Path) -> tuple[str, str]:
    """Make a certificate that its own key has signed."""
    chain, key = folder / "chain.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bench"]
    more = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command, *more], check=True, capture_output=True)
    return str(chain), str(key)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.tls")
    parser.add_argument("--servers", default=SERVERS)
    parser.add_argument("--polls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(MEASURES), help="what to measure: %(default)s")
    arguments = parser.parse_args()
    names = arguments.servers.split(",")
    with contextlib.ExitStack() as removals:
        folder = Path(tempfile.mkdtemp(prefix="gpop-bench-"))
        folder.chmod(0o755)
        removals.callback(maildrops.remove, folder)
        profiles = [maildrops.profile(label, 4) for label in (POLLED, LARGE)]
        post = Post(folder, profiles)
        pair = certificate(folder)
        servers = []
        for name in names:
            server = kind_of(name)(name, folder, Accounts(""))
            server.certificate = pair
            post.fill(server.tree)
            removals.callback(server.stop)
            server.start("auto")
            servers.append(server)
        found = measure(servers, arguments.only.split(","), arguments.polls, arguments.rounds)
        print(report(found, names))


if __name__ == "__main__":
    main()

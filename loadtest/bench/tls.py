"""
What TLS costs, beside other servers.

    python -m loadtest.bench.tls [--servers gpop,dovecot-tuned,...] [--polls N] [--rounds N]

For each server, with one certificate (RSA, 2,048 bits) and the servers' own defaults for TLS:
CPU of a poll (STAT, UIDL, QUIT of 20 messages) in cleartext, with TLS from the start, and by STLS;
CPU of RETR of one message of 50 MB, in cleartext and inside TLS; and the memory of a connection inside
TLS that waits before the login. One client, one connection after the other, no resumption; best of
the rounds. The CPU is the server's alone. Needs root, as servers with shared processes do, and openssl.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loadtest.bench import cpu, maildrops
from loadtest.bench.accounts import Accounts
from loadtest.bench.kinds import kind_of
from loadtest.bench.maildrops import PASSWORD, Maildrop, Post
from loadtest.bench.servers import Server

SERVERS = "gpop,gpop-reuse,dovecot-tuned"
WAYS = ("cleartext", "implicit", "stls")
POLLED, LARGE = "20", "big"
IDLE = 200
TIMEOUT_S = 60.0
RECEIVE_OCTETS = 1 << 18


class Client:
    """One connection that has been greeted, and has logged in if that is asked for."""

    def __init__(self, server: Server, way: str) -> None:
        port = server.tls_port if way == "implicit" else server.port
        self.sock: socket.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if way == "implicit":
            self._begin_tls()
        self._line()
        if way == "stls":
            self.ask(b"STLS")
            self._begin_tls()

    def _begin_tls(self) -> None:
        self.sock = CONTEXT.wrap_socket(self.sock)

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

    def close(self) -> None:
        self.sock.close()


CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE


def poll(server: Server, way: str, maildrop: Maildrop) -> None:
    client = Client(server, way)
    client.log_in(maildrop)
    client.ask(b"STAT")
    client.ask(b"UIDL", multiline=True)
    client.ask(b"QUIT")
    client.close()


def retrieve(server: Server, way: str, maildrop: Maildrop) -> None:
    client = Client(server, way)
    client.log_in(maildrop)
    if client.ask(b"RETR 1", multiline=True) < maildrop.octets:
        raise ConnectionError("the message came too short")
    client.ask(b"QUIT")
    client.close()


def polls_ms(server: Server, way: str, polls: int) -> float:
    """Milliseconds of CPU for one poll."""
    drops = server.tree.of(POLLED)
    before = cpu.settled(server.meter)
    for number in range(polls):
        poll(server, way, drops[number % len(drops)])
    return (cpu.settled(server.meter) - before).total / polls * 1e3


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


def figures(server: Server, polls: int, rounds: int) -> Iterator[tuple[str, float]]:
    """All figures of one server, named."""
    for way in WAYS:
        polls_ms(server, way, 20)
        yield f"poll, {way}: ms", min(polls_ms(server, way, polls) for _ in range(rounds))
    for way in WAYS[:2]:
        large_ms(server, way)
        yield f"RETR of 50 MB, {way}: ms", min(large_ms(server, way) for _ in range(rounds))
    yield "idle connection inside TLS: KiB", idle_kib(server)


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
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as removals:
        folder = Path(tempfile.mkdtemp(prefix="gpop-bench-"))
        folder.chmod(0o755)
        removals.callback(maildrops.remove, folder)
        profiles = [maildrops.profile(label, 4) for label in (POLLED, LARGE)]
        post = Post(folder, profiles)
        for name in arguments.servers.split(","):
            server = kind_of(name)(name, folder, Accounts(""))
            server.certificate = certificate(folder)
            post.fill(server.tree)
            removals.callback(server.stop)
            server.start("auto")
            for what, figure in figures(server, arguments.polls, arguments.rounds):
                print(f"{name:<16} {what:<36} {figure:8.2f}", flush=True)


if __name__ == "__main__":
    main()

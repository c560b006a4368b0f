"""gpop behind a real HAProxy, which is the balancer: who the log says the clients were."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import PASSWORD, Dialogue, Server, Site, wait_until

pytestmark = pytest.mark.skipif(not shutil.which("haproxy"), reason="needs haproxy")

CONF = Path(__file__).parents[2] / "conf"
HAPROXY = "127.0.8.1"  # whence HAProxy connects to gpop
CLIENTS = ("127.0.8.10", "127.0.8.11")
SETTINGS = {
    "server__listen": ["127.0.0.1:0", "127.0.0.2:0"],
    "server__proxy_listen": ["127.0.0.2:0"],
    "server__proxy_networks": [HAPROXY],
    "accounts__trusted_networks": [],
    "accounts__cleartext": "always",
}
# What HAProxy sends at each of its ports.
WAYS = {
    "v1": "send-proxy",
    "v2": "send-proxy-v2",
    "tls": "send-proxy-v2-ssl-cn",
    "passthrough": "send-proxy-v2-ssl",
    "nothing": "",
}


class Haproxy:
    """HAProxy in front of a server, with one port for each of WAYS."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.ports = dict(zip(WAYS, free_ports(len(WAYS)), strict=True))
        config = folder / "haproxy.cfg"
        config.write_text(self._config(folder, backend))
        self.log_path = folder / "haproxy.log"
        with open(self.log_path, "wb") as log:
            command = ["haproxy", "-db", "-f", str(config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self._listens, what=lambda: f"haproxy: {self.log_path.read_text()}")

    def _config(self, folder: Path, backend: str) -> str:
        parts = ["defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"]
        for way, send in WAYS.items():
            crypt = f" ssl crt {folder}/pop.pem" if way == "tls" else ""
            parts.append(
                f"listen {way}\n bind 127.0.0.1:{self.ports[way]}{crypt}\n"
                f" server gpop {backend} {send} source {HAPROXY}\n"
            )
        return "".join(parts)

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log_path.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports["v1"])) == 0

    def connect(self, way: str, client: str) -> Dialogue:
        """Connect as a client with that address; nothing is read yet."""
        address = ("127.0.0.1", self.ports[way])
        sock = socket.create_connection(address, 20, source_address=(client, 0))
        if way == "tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            sock = context.wrap_socket(sock)
        return Dialogue(sock)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; HAProxy does not say which one the kernel gave it."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def make_certificate(folder: Path) -> None:
    """A key and a certificate that it signed itself, in one file as HAProxy wants them."""
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
        "2", "-subj", "/CN=pop.example.org", "-keyout", str(folder / "key"), "-out", str(folder / "cert"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (folder / "pop.pem").write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Haproxy]]:
    """gpop, and HAProxy in front of it."""
    folder = tmp_path_factory.mktemp("haproxy")
    make_certificate(folder)
    site = Site(**SETTINGS, server__proxy_timeout_s=0.5)
    try:
        with Server(site) as server:
            haproxy = Haproxy(folder, server.addresses[1])
            try:
                yield server, haproxy
            finally:
                haproxy.stop()
            assert server.faults() == []
    finally:
        site.remove()


@pytest.mark.parametrize("way", ["v1", "v2", "tls"])
def test_clients_are_told_apart(balanced, way):
    """Two clients of one balancer: each session has its own client's address, port and TLS."""
    server, haproxy = balanced
    for client in CLIENTS:
        before = len(server.events("session_closed"))
        with haproxy.connect(way, client) as peer:
            assert peer.line().startswith(b"+OK")
            port = peer.socket.getsockname()[1]
            peer.send(f"USER user0\r\nPASS {PASSWORD}\r\nSTAT\r\nQUIT\r\n".encode())
            assert [line[:3] for line in peer.rest().splitlines()] == [b"+OK"] * 4
        closed = server.wait_for_event("session_closed", before + 1)
        assert (closed["peer"], closed["peer_port"], closed["proxy"]) == (client, port, HAPROXY)
        assert (closed["local"], closed["local_port"]) == ("127.0.0.1", haproxy.ports[way])
        assert closed["tls"] == ("TLSv1.3 (proxy)" if way == "tls" else None)


@pytest.mark.parametrize("way", ["v1", "v2", "tls"])
def test_a_refused_login_names_the_client(balanced, way):
    """At once, for fail2ban; the penalty is the client's too."""
    server, haproxy = balanced
    client = f"127.0.8.{20 + list(WAYS).index(way)}"
    with haproxy.connect(way, client) as peer:
        assert peer.line().startswith(b"+OK")
        assert peer.ask("USER user0").startswith(b"+OK")
        assert peer.ask("PASS wrong").startswith(b"-ERR [AUTH]")
    assert server.wait_for_event("login_refused", peer=client)["proxy"] == HAPROXY
    server.wait_for_event("penalty_raised", peer=client)
    assert HAPROXY not in {event["peer"] for event in server.events("penalty_raised", "login_refused")}


def test_a_balancer_that_sends_no_header_gets_nowhere(balanced):
    """Its client waits for a greeting, it for the client: closed after the time-out, with a line."""
    server, haproxy = balanced
    with haproxy.connect("nothing", CLIENTS[0]) as peer:
        assert peer.rest() == b""
    refused = server.wait_for_event("proxy_refused", reason="timeout")
    assert refused["peer"] == HAPROXY


def test_a_tls_handshake_that_is_passed_on_is_not_eaten(balanced):
    """The header is read exactly: what a client of a balancer that ends no TLS sends first is its own."""
    _, haproxy = balanced
    with haproxy.connect("passthrough", CLIENTS[0]) as peer:
        peer.send(b"\x16\x03\x01\x00\x05hello\n")
        assert peer.line().startswith(b"+OK")
        assert peer.line() == b"-ERR That line holds a NUL"


def test_the_example_for_haproxy_is_one_that_it_accepts(tmp_path):
    """With a certificate in the place that it names."""
    make_certificate(tmp_path)
    text = (CONF / "examples" / "behind-a-balancer" / "haproxy.cfg").read_text()
    assert "/etc/haproxy/pop.example.org.pem" in text
    config = tmp_path / "haproxy.cfg"
    config.write_text(text.replace("/etc/haproxy/pop.example.org.pem", str(tmp_path / "pop.pem")))
    subprocess.run(["haproxy", "-c", "-f", str(config)], check=True, timeout=60)

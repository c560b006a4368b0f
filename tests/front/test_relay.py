"""The relay between a peer inside TLS and its session, with real sockets and without a server."""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor

import gevent
import pytest

from gpop.front import relay
from gpop.front.transport import TlsTransport
from tests.certificates import Authority

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
AUTOLOGOUT_S = 600.0
TIMEOUT_S = 20


@pytest.fixture
def authority(tmp_path):
    """Who issues the certificate."""
    return Authority(tmp_path / "authority")


@pytest.fixture
def client_and_transport(authority):
    """A client, and what a front has of it, after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        plain = socket.create_connection(listening.getsockname(), TIMEOUT_S)
        accepted, _ = listening.accept()
    with ThreadPoolExecutor(1) as thread:
        wrap = authority.client_context().wrap_socket
        client = thread.submit(wrap, plain, server_hostname="localhost")
        transport = TlsTransport(gevent.get_hub(), accepted, context)
        assert transport.handshake()
        client = client.result()
    with client, accepted:
        yield client, transport


@pytest.fixture
def moving(client_and_transport):
    """A relay whose peer takes nothing any more, with a session that has more to say; and that session."""
    _, transport = client_and_transport
    ours, session = socket.socketpair()
    faults = []
    with session, ours:
        session.setblocking(False)
        running = relay.Relay(transport, ours, AUTOLOGOUT_S, faults.append)
        running.start()

        def speak() -> None:
            while True:
                try:
                    session.send(b"x" * 65536)
                except BlockingIOError:
                    gevent.sleep(0.02)

        speaking = gevent.spawn(speak)
        yield running, session
        speaking.kill()
    assert faults == []


def ends(running: relay.Relay, within_s: float) -> bool:
    """Whether a relay ends in that time."""
    with gevent.Timeout(within_s, False):
        running.wait()
        return True
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it takes the client's packets away")
def test_a_peer_that_left_the_network_in_a_download_ends_its_session(
    client_and_transport, moving, monkeypatch
):
    """Nobody acknowledges what is sent: the session sees the end long before its autologout timer."""
    monkeypatch.setattr(relay, "LOOK_S", 0.05)
    monkeypatch.setattr(relay, "GONE_S", 0.5)
    client, _ = client_and_transport
    # From here on its kernel throws away what comes, as if the network were gone.
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(nothing))
    client.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    running, session = moving
    assert ends(running, TIMEOUT_S)
    with pytest.raises(BrokenPipeError):
        session.send(b"x")


def test_a_peer_that_only_does_not_read_is_waited_for(client_and_transport, moving, monkeypatch):
    """Its kernel acknowledges that it is there; when it reads again all goes on."""
    monkeypatch.setattr(relay, "LOOK_S", 0.05)
    client, _ = client_and_transport
    running, _ = moving
    assert not ends(running, 1)
    with ThreadPoolExecutor(1) as thread:
        octets = thread.submit(client.recv, 1000)
        assert not ends(running, 0.2)
        assert set(octets.result(TIMEOUT_S)) == {ord("x")}

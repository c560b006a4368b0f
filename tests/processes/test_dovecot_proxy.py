"""gpop behind a real Dovecot that is a proxy: whom XCLIENT names is whom the log, and the limits, go by."""

from __future__ import annotations

import poplib
import socket

import pytest

from tests.certificates import Authority
from tests.dovecot import Dovecot, reason_to_skip
from tests.serving import PASSWORD, Server, Site

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())

CLIENT = "127.0.9.1"  # whence a client connects to Dovecot; Dovecot itself comes from 127.0.0.1
# How Dovecot speaks to gpop.
WAYS = {"cleartext": "", "implicit": "ssl=any-cert", "stls": "starttls=any-cert"}


@pytest.fixture(scope="module", params=WAYS)
def behind(request, tmp_path_factory):
    """gpop, and in front of it Dovecot, which lets in nobody by itself: name and password go on to gpop."""
    folder = tmp_path_factory.mktemp("proxy")
    pair = Authority(folder / "authority").issue("localhost")
    site = Site(
        server__listen_tls=["127.0.0.1:0"],
        server__xclient_networks=["127.0.0.1/32"],
        tls__certificates=[list(pair)],
    )
    try:
        with Server(site) as server:
            port = server.tls_port if request.param == "implicit" else server.port
            where = f"host=127.0.0.1 port={port} {WAYS[request.param]}"
            more = f"""
disable_plaintext_auth = no
passdb {{
  driver = static
  args = nopassword=y proxy=y {where}
}}
"""
            with Dovecot(folder / "dovecot", pair, more) as dovecot:
                yield server, dovecot, request.param
            assert server.faults() == []
    finally:
        site.remove()


def connected(dovecot: Dovecot) -> poplib.POP3:
    """A client of Dovecot's, with an address of its own."""

    class Pop3(poplib.POP3):
        def _create_socket(self, timeout: float) -> socket.socket:
            return socket.create_connection((self.host, self.port), timeout, source_address=(CLIENT, 0))

    return Pop3("127.0.0.1", dovecot.port, timeout=30)


def test_the_client_behind_dovecots_proxy(behind):
    """It gets its mail, and the line of its session has its own address, and Dovecot's as the proxy."""
    server, dovecot, way = behind
    server.site.deliver(b"Subject: x\n\nhello\n")
    client = connected(dovecot)
    port = client.sock.getsockname()[1]
    client.user("user0")
    client.pass_(PASSWORD)
    assert client.retr(1)[1][-1] == b"hello"
    client.quit()
    closed = server.wait_for_event("session_closed", peer_port=port)
    assert (closed["peer"], closed["proxy"], closed["retr"]) == (CLIENT, "127.0.0.1", 1)
    assert (closed["tls"] is None) == (way == "cleartext")


def test_a_wrong_password_through_dovecots_proxy(behind):
    """Dovecot passes on the refusal, which is the client's, not the proxy's; then a right one is taken."""
    server, dovecot, _ = behind
    client = connected(dovecot)
    client.user("user0")
    with pytest.raises(poplib.error_proto, match="AUTH"):
        client.pass_("wrong")
    refused = server.wait_for_event("login_refused")
    assert (refused["peer"], refused["proxy"], refused["code"]) == (CLIENT, "127.0.0.1", "AUTH")
    port = client.sock.getsockname()[1]
    client.user("user0")
    client.pass_(PASSWORD)
    client.quit()
    assert server.wait_for_event("session_closed", peer_port=port)["peer"] == CLIENT

"""Connections that somebody else made for a client: PROXY headers and XCLIENT, spoken by hand."""

from __future__ import annotations

import poplib
import select
import socket
import ssl

import pytest

from tests.certificates import Authority
from tests.front.test_proxy_header import (
    LOCAL,
    TCP6,
    WITH_TLS,
    addresses,
    version_2,
)
from tests.serving import PASSWORD, Dialogue, Server, wait_until

BALANCER = "127.0.7.1"
POP3_PROXY = "127.0.7.2"
STRANGER = "127.0.7.9"
CLIENT = "192.0.2.7"
V1 = f"PROXY TCP4 {CLIENT} 198.51.100.1 56324 110\r\n".encode()
SETTINGS = {
    "server__listen": ["127.0.0.1:0", "127.0.0.2:0"],
    "server__proxy_listen": ["127.0.0.2:0"],
    "server__proxy_networks": [f"{BALANCER}/32"],
    "server__xclient_networks": [f"{POP3_PROXY}/32"],
    "accounts__trusted_networks": [],
    "accounts__cleartext": "always",
}


@pytest.fixture
def proxied(make_server):
    """gpop with an address for a balancer and one for everybody."""
    server = make_server(**SETTINGS)
    yield server
    assert server.faults() == []


def connect(server: Server, source: str = BALANCER, proxied: bool = True) -> Dialogue:
    """Connect from an address; to where balancers do, or to where everybody does. Nothing is read yet."""
    host, _, port = server.addresses[proxied].rpartition(":")
    return Dialogue(socket.create_connection((host, int(port)), 20, source_address=(source, 0)))


def is_closed(peer: Dialogue) -> bool:
    """Whether it is closed without a word; with a reset, if something lay there that nobody has read."""
    try:
        return peer.rest() == b""
    except ConnectionError:
        return True


def log_in(peer: Dialogue, password: str = PASSWORD) -> bytes:
    assert peer.ask("USER user0").startswith(b"+OK")
    return peer.ask(f"PASS {password}")


@pytest.mark.parametrize(
    ("octets", "ends", "tls"),
    [
        (V1, (CLIENT, 56324, "198.51.100.1", 110), None),
        (version_2(addresses()), (CLIENT, 56324, "198.51.100.1", 110), None),
        (
            version_2(addresses("2001:db8::7", "2001:db8::1", (1, 995)), family=TCP6),
            ("2001:db8::7", 1, "2001:db8::1", 995),
            None,
        ),
        (WITH_TLS, (CLIENT, 56324, "198.51.100.1", 110), "TLSv1.3 (proxy)"),
    ],
    ids=["v1", "v2", "v2-ipv6", "v2-tls"],
)
def test_a_session_is_the_clients(proxied, octets, ends, tls):
    """Its line names the client, where it connected to, its TLS, and who spoke for it."""
    with connect(proxied) as peer:
        peer.send(octets)
        assert peer.line().startswith(b"+OK")
        assert log_in(peer).startswith(b"+OK")
        assert peer.ask("QUIT").startswith(b"+OK")
    closed = proxied.wait_for_event("session_closed")
    assert (closed["peer"], closed["peer_port"], closed["local"], closed["local_port"]) == ends
    assert closed["proxy"] == BALANCER
    assert closed["tls"] == tls


@pytest.mark.parametrize(
    "octets", [version_2(command=LOCAL, family=0), b"PROXY UNKNOWN\r\n"], ids=["local", "unknown"]
)
def test_who_speaks_for_nobody_is_the_peer(proxied, octets):
    """A health check gets its greeting, and what it does is its own."""
    with connect(proxied) as peer:
        peer.send(octets)
        assert peer.line().startswith(b"+OK")
        assert log_in(peer, "wrong").startswith(b"-ERR [AUTH]")
    refused = proxied.wait_for_event("login_refused")
    assert refused["peer"] == BALANCER and "proxy" not in refused
    assert refused["local"] == "127.0.0.2"


@pytest.mark.parametrize("header", [V1, WITH_TLS], ids=["v1", "v2"])
def test_what_follows_the_header_is_not_lost(proxied, header):
    """Sent with it, in one piece: it is the client's."""
    with connect(proxied) as peer:
        peer.send(header + b"USER user0\r\nPASS " + PASSWORD.encode() + b"\r\nSTAT\r\nQUIT\r\n")
        assert [line[:3] for line in peer.rest().splitlines()] == [b"+OK"] * 5
    assert proxied.wait_for_event("session_closed", peer=CLIENT)["close_reason"] == "quit"


@pytest.mark.parametrize("header", [V1, WITH_TLS], ids=["v1", "v2"])
def test_a_header_may_come_octet_by_octet(proxied, header):
    """Nothing is greeted before it is whole."""
    with connect(proxied) as peer:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in header[:-1]:
            peer.send(bytes((octet,)))
        assert not select.select([peer.socket], [], [], 0.05)[0]
        peer.send(header[-1:])
        assert peer.line().startswith(b"+OK")
        assert log_in(peer).startswith(b"+OK")


def test_nobody_is_kept_waiting_by_a_header_that_does_not_come(proxied):
    """A balancer's silence, or half a header of its, costs no time of the others'."""
    with connect(proxied) as silent, connect(proxied) as slow, connect(proxied) as peer:
        slow.send(V1[:20])
        peer.send(V1)
        assert peer.line().startswith(b"+OK")
        assert log_in(peer).startswith(b"+OK")
        assert not select.select([silent.socket, slow.socket], [], [], 0)[0]


def test_an_untrusted_sender_is_closed(proxied):
    """Without a greeting, whatever it sends; the log names it."""
    with connect(proxied, STRANGER) as peer:
        assert peer.rest() == b""
    refused = proxied.wait_for_event("proxy_refused")
    assert (refused["peer"], refused["reason"], refused["level"]) == (STRANGER, "untrusted", "warning")


def test_an_untrusted_senders_header_is_not_read(proxied):
    """Nor does it name anybody."""
    with connect(proxied, STRANGER) as peer:
        peer.send(V1)
        assert is_closed(peer)
    assert proxied.wait_for_event("proxy_refused")["peer"] == STRANGER


def test_silence_is_closed(make_server):
    """A balancer that sends no header: its client waits for a greeting, and it for the client."""
    server = make_server(**SETTINGS | {"server__proxy_timeout_s": 0.3})
    with connect(server) as silent, connect(server) as slow:
        slow.send(V1[:-1])
        assert silent.rest() == b""
        assert slow.rest() == b""
    refused = server.wait_for_event("proxy_refused", 2)
    assert (refused["peer"], refused["reason"]) == (BALANCER, "timeout")


@pytest.mark.parametrize("octets", [b"CAPA\r\n", b"\x16\x03\x01", version_2(b"", family=0x31)])
def test_what_is_no_header_is_closed(proxied, octets):
    """At once, and the log says what is wrong."""
    with connect(proxied) as peer:
        peer.send(octets)
        assert is_closed(peer)
    refused = proxied.wait_for_event("proxy_refused", peer=BALANCER)
    assert refused["reason"] == "malformed" and refused["detail"]


def test_a_balancer_that_only_looks_whether_the_port_is_open_is_no_event(proxied):
    """Health checks connect and leave, every few seconds."""
    connect(proxied).close()
    with connect(proxied, STRANGER) as peer:
        assert peer.rest() == b""
    proxied.wait_for_event("proxy_refused")
    assert [event["peer"] for event in proxied.events("proxy_refused")] == [STRANGER]


def test_a_flood_of_refusals_does_not_fill_the_log(proxied):
    """A few lines in ten seconds, however many are closed."""
    for _ in range(60):
        with connect(proxied, STRANGER) as peer:
            assert peer.rest() == b""
    assert len(proxied.events("proxy_refused")) <= 20


def test_a_header_elsewhere_names_nobody(proxied):
    """At an address that is not for balancers it is an unknown command, from whomever."""
    with connect(proxied, BALANCER, proxied=False) as peer:
        assert peer.line().startswith(b"+OK")
        peer.send(V1)
        assert peer.line() == b"-ERR Unknown command"
        assert log_in(peer).startswith(b"+OK")
        assert peer.ask("QUIT").startswith(b"+OK")
    closed = proxied.wait_for_event("session_closed")
    assert closed["peer"] == BALANCER and "proxy" not in closed


def test_a_second_header_is_no_header(proxied):
    """The client can't name itself anew."""
    with connect(proxied) as peer:
        peer.send(V1 + V1.replace(CLIENT.encode(), b"192.0.2.8"))
        assert peer.line().startswith(b"+OK")
        assert peer.line() == b"-ERR Unknown command"
        assert log_in(peer, "wrong").startswith(b"-ERR")
    assert proxied.wait_for_event("login_refused")["peer"] == CLIENT


def test_penalties_fall_on_the_client(proxied):
    """One client of a balancer guesses: it waits, and neither the balancer nor another client does."""
    other = V1.replace(CLIENT.encode(), b"192.0.2.99")
    with connect(proxied) as guesser, connect(proxied) as honest:
        guesser.send(V1)
        guesser.line()
        assert log_in(guesser, "wrong").startswith(b"-ERR [AUTH]")
        assert proxied.wait_for_event("penalty_raised")["peer"] == CLIENT
        assert guesser.ask("USER user0").startswith(b"+OK")
        guesser.send(f"PASS {PASSWORD}\r\n".encode())
        honest.send(other)
        honest.line()
        assert log_in(honest).startswith(b"+OK")
        assert not select.select([guesser.socket], [], [], 0)[0]
    assert {event["peer"] for event in proxied.events("penalty_raised")} == {CLIENT}


@pytest.mark.parametrize(
    ("network", "answer"), [(f"{CLIENT}/32", b"+OK"), (f"{BALANCER}/32", b"-ERR [AUTH]")]
)
def test_allow_nets_is_about_the_client(make_site, make_server, network, answer):
    """And not about the balancer, through which everybody comes."""
    site = make_site(**SETTINGS)
    site.passwd.write_text(site.passwd.read_text().strip() + f"allow_nets={network}\n")
    server = make_server(site)
    with connect(server) as peer:
        peer.send(V1)
        peer.line()
        assert log_in(peer).startswith(answer)


def test_xclient_names_the_client(proxied):
    """From a POP3 proxy: +OK, and then it is as if the client had connected."""
    with connect(proxied, POP3_PROXY, proxied=False) as peer:
        assert peer.line().startswith(b"+OK [XCLIENT] ")
        command = f"XCLIENT ADDR={CLIENT} PORT=4711 DESTADDR=198.51.100.1 DESTPORT=995 CLIENT-TRANSPORT=TLS"
        assert peer.ask(command).startswith(b"+OK")
        assert peer.ask(command) == b"-ERR Unknown command"  # the client is trusted with nothing
        assert log_in(peer, "wrong").startswith(b"-ERR [AUTH]")
        assert proxied.wait_for_event("penalty_raised")["peer"] == CLIENT
        assert log_in(peer).startswith(b"+OK")
        assert peer.ask("QUIT").startswith(b"+OK")
    closed = proxied.wait_for_event("session_closed")
    assert (closed["peer"], closed["peer_port"]) == (CLIENT, 4711)
    assert (closed["local"], closed["local_port"]) == ("198.51.100.1", 995)
    assert (closed["proxy"], closed["tls"]) == (POP3_PROXY, "TLS (proxy)")


def test_xclient_may_be_pipelined_with_the_login(proxied):
    """As a proxy sends it that saw the greeting."""
    with connect(proxied, POP3_PROXY, proxied=False) as peer:
        login = f"USER user0\r\nPASS {PASSWORD}\r\nQUIT\r\n"
        peer.send(f"XCLIENT ADDR={CLIENT}\r\n{login}".encode())
        assert [line[:3] for line in peer.rest().splitlines()] == [b"+OK"] * 5
    assert proxied.wait_for_event("session_closed")["peer"] == CLIENT


def test_an_unusable_xclient_changes_nothing(proxied):
    """Neither an address that is none, nor none at all."""
    with connect(proxied, POP3_PROXY, proxied=False) as peer:
        assert peer.line().startswith(b"+OK")
        assert peer.ask("XCLIENT ADDR=localhost").startswith(b"-ERR")
        assert peer.ask("XCLIENT PORT=1").startswith(b"-ERR")
        assert log_in(peer, "wrong").startswith(b"-ERR")
    refused = proxied.wait_for_event("login_refused")
    assert refused["peer"] == POP3_PROXY and "proxy" not in refused


@pytest.mark.parametrize("octets", [b"", V1, version_2(command=LOCAL, family=0), b"PROXY UNKNOWN\r\n"])
def test_xclient_is_unknown_to_the_clients_of_a_balancer(make_server, octets):
    """What a balancer passes on are its clients' octets, even if it is trusted to give XCLIENT itself."""
    networks = [] if not octets else [f"{BALANCER}/32"]
    server = make_server(**SETTINGS | {"server__xclient_networks": networks})
    with connect(server, proxied=bool(octets)) as peer:
        peer.send(octets)
        assert b"XCLIENT" not in peer.line()
        assert peer.ask("XCLIENT ADDR=192.0.2.8") == b"-ERR Unknown command"


def test_a_balancer_may_stand_before_a_pop3_proxy(proxied):
    """A header names the proxy, XCLIENT the client; the log names the balancer, which the kernel knows."""
    with connect(proxied) as peer:
        peer.send(f"PROXY TCP4 {POP3_PROXY} 198.51.100.1 1 110\r\n".encode())
        assert peer.line().startswith(b"+OK [XCLIENT]")
        assert peer.ask(f"XCLIENT ADDR={CLIENT}").startswith(b"+OK")
        assert log_in(peer).startswith(b"+OK")
        assert peer.ask("QUIT").startswith(b"+OK")
    closed = proxied.wait_for_event("session_closed")
    assert (closed["peer"], closed["proxy"]) == (CLIENT, BALANCER)


def test_a_reload_moves_an_address_to_the_balancers(proxied):
    """New connections to it need a header then; a session of before goes on."""
    with connect(proxied, STRANGER, proxied=False) as before:
        assert before.line().startswith(b"+OK")
        assert log_in(before).startswith(b"+OK")
        proxied.site.write_config(server__proxy_listen=["127.0.0.1:0", "127.0.0.2:0"])
        proxied.process.send_signal(1)
        proxied.wait_for_event("reload_finished")

        def needs_a_header() -> bool:
            with connect(proxied, STRANGER, proxied=False) as peer:
                return peer.line() == b""

        wait_until(needs_a_header)
        assert before.ask("STAT").startswith(b"+OK")


class Poplib(poplib.POP3):
    """Python's client on a connection that there is already."""

    def __init__(self, connected: socket.socket) -> None:
        self.connected = connected
        super().__init__("localhost")

    def _create_socket(self, timeout: float) -> socket.socket:
        return self.connected


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Who issues the certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def over_tls(make_server, authority):
    """gpop with TLS, where balancers connect too; without it nobody may log in."""
    server = make_server(
        **SETTINGS
        | {
            "server__listen_tls": ["127.0.0.2:0"],
            "tls__certificates": [list(authority.issue("localhost"))],
            "accounts__cleartext": "never",
        }
    )
    yield server
    assert server.faults() == []


def test_tls_from_the_start_begins_behind_the_header(over_tls, authority):
    """The balancer passes on what its client says, a handshake first: the header comes before that."""
    sock = socket.create_connection(("127.0.0.2", over_tls.tls_port), 20, source_address=(BALANCER, 0))
    sock.sendall(V1)
    client = Poplib(authority.client_context().wrap_socket(sock, server_hostname="localhost"))
    assert "STLS" not in client.capa()
    client.user("user0")
    with pytest.raises(poplib.error_proto, match="AUTH"):
        client.pass_("wrong")
    assert over_tls.wait_for_event("penalty_raised")["peer"] == CLIENT
    client.user("user0")
    client.pass_(PASSWORD)
    client.quit()
    closed = over_tls.wait_for_event("session_closed")
    assert (closed["peer"], closed["proxy"], closed["tls"]) == (CLIENT, BALANCER, "TLSv1.3")
    assert closed["cipher"]


def test_a_header_inside_tls_is_no_header(over_tls, authority):
    """Nor does a handshake come before one."""
    sock = socket.create_connection(("127.0.0.2", over_tls.tls_port), 20, source_address=(BALANCER, 0))
    with sock, pytest.raises(OSError):
        authority.client_context().wrap_socket(sock, server_hostname="localhost")
    assert over_tls.wait_for_event("proxy_refused")["reason"] == "malformed"


def test_stls_works_behind_a_header(over_tls, authority):
    """It is the client's TLS, with gpop; whose connection it is stays as the balancer has said."""
    peer = connect(over_tls)
    peer.send(V1)
    client = Poplib(peer.socket)
    assert "USER" not in client.capa()
    client.stls(authority.client_context())
    client.user("user0")
    client.pass_(PASSWORD)
    client.quit()
    closed = over_tls.wait_for_event("session_closed")
    assert (closed["peer"], closed["proxy"], closed["tls"]) == (CLIENT, BALANCER, "TLSv1.3")


def test_tls_that_ends_at_the_balancer_is_tls(over_tls):
    """Passwords are taken, though in cleartext from the balancer on, and TLS does not begin twice."""
    with connect(over_tls) as peer:
        peer.send(WITH_TLS)
        assert peer.line().startswith(b"+OK")
        assert peer.ask("CAPA").startswith(b"+OK")
        offered = peer.lines()
        assert b"USER" in offered and b"STLS" not in offered
        assert log_in(peer).startswith(b"+OK")
        assert peer.ask("QUIT").startswith(b"+OK")
    closed = over_tls.wait_for_event("session_closed")
    assert (closed["tls"], closed["cipher"]) == ("TLSv1.3 (proxy)", None)


@pytest.mark.parametrize(("said", "code"), [("", b"-ERR [SYS/PERM]"), (" CLIENT-TRANSPORT=TLS", b"+OK")])
def test_what_xclient_says_of_tls_decides_about_logins(over_tls, said, code):
    """As if that client had connected: what was offered to its proxy is over."""
    with connect(over_tls, POP3_PROXY, proxied=False) as peer:
        assert peer.line().startswith(b"+OK [XCLIENT]")
        assert peer.ask("USER user0").startswith(b"-ERR [SYS/PERM]")
        assert peer.ask(f"XCLIENT ADDR={CLIENT}{said}").startswith(b"+OK")
        assert peer.ask("USER user0").startswith(code)


def test_xclient_may_be_given_inside_tls(over_tls, authority):
    """A proxy that begins TLS with gpop is who it was; the TLS in the log is then gpop's own."""
    with connect(over_tls, POP3_PROXY, proxied=False) as peer:
        assert peer.line().startswith(b"+OK [XCLIENT]")
        assert peer.ask("STLS").startswith(b"+OK")
        context: ssl.SSLContext = authority.client_context()
        with Dialogue(context.wrap_socket(peer.socket, server_hostname="localhost")) as inside:
            assert inside.ask(f"XCLIENT ADDR={CLIENT}").startswith(b"+OK")
            assert inside.ask(f"XCLIENT ADDR={CLIENT}") == b"-ERR Unknown command"
            assert log_in(inside).startswith(b"+OK")
            assert inside.ask("QUIT").startswith(b"+OK")
    closed = over_tls.wait_for_event("session_closed")
    assert (closed["peer"], closed["proxy"], closed["tls"]) == (CLIENT, POP3_PROXY, "TLSv1.3")


def test_connections_are_counted_for_the_client(make_server):
    """Not for the proxy that they come through, by a header or by XCLIENT; and given back at their end."""
    server = make_server(**SETTINGS | {"server__max_connections_per_address": 1})
    other = V1.replace(CLIENT.encode(), b"192.0.2.8")
    with connect(server) as first, connect(server) as second, connect(server) as third:
        first.send(V1)
        assert first.line().startswith(b"+OK")
        second.send(V1)
        assert second.line().startswith(b"-ERR [SYS/TEMP]")
        assert second.rest() == b""
        third.send(other)
        assert third.line().startswith(b"+OK")
        with (
            connect(server, POP3_PROXY, proxied=False) as fourth,
            connect(server, POP3_PROXY, proxied=False) as fifth,
        ):
            assert fourth.line().startswith(b"+OK") and fifth.line().startswith(b"+OK")
            assert fourth.ask("XCLIENT ADDR=192.0.2.9").startswith(b"+OK")
            assert fifth.ask(f"XCLIENT ADDR={CLIENT}").startswith(b"-ERR [SYS/TEMP]")
            assert fifth.rest() == b""
    limited = server.wait_for_event("limit_reached")
    assert (limited["peer"], limited["proxy"]) == (CLIENT, BALANCER)
    assert limited["reason"] == "too_many_connections"

    def is_free_again() -> bool:
        with connect(server) as peer:
            peer.send(V1)
            return peer.line().startswith(b"+OK")

    wait_until(is_free_again)


def test_logins_are_counted_for_the_client(make_server):
    """`accounts.max_logins_per_address`: a second client of the same balancer has logins of its own."""
    server = make_server(**SETTINGS | {"accounts__max_logins_per_address": 1, "accounts__refusal_time_s": 2})
    with connect(server) as first, connect(server) as second, connect(server) as other:
        for peer, header in ((first, V1), (second, V1), (other, V1.replace(CLIENT.encode(), b"192.0.2.8"))):
            peer.send(header)
            assert peer.line().startswith(b"+OK")
            assert peer.ask("USER user0").startswith(b"+OK")
        first.send(b"PASS wrong\r\n")
        server.wait_for_event("penalty_raised")
        assert second.ask(f"PASS {PASSWORD}").startswith(b"-ERR [SYS/TEMP]")
        assert other.ask(f"PASS {PASSWORD}").startswith(b"+OK")

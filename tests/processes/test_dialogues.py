"""The transcripts of `tests/dialogues/`, played over TCP against a real gpop."""

from __future__ import annotations

import socket

import pytest

from tests.dialogue import DIALOGUES, read_dialogue
from tests.serving import Server, Site, wait_until


@pytest.fixture(scope="module")
def serving():
    """A function that returns gpop serving one account, a (name, password), until the module is done."""
    servers = {}

    def server_for(account):
        if account not in servers:
            site = Site()
            name, password = (word.decode() for word in account)
            ids = f"{site.uid('user0')}:{site.gid('user0')}"
            site.passwd.write_text(f"{name}:{{PLAIN}}{password}:{ids}::{site.home()}::\n")
            servers[account] = Server(site)
        return servers[account]

    yield server_for
    for server in servers.values():
        server.stop()
        server.site.remove()


@pytest.mark.parametrize("piece_octets", [1 << 20, 1], ids=["whole", "octet by octet"])
@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: path.stem)
def test_dialogue(serving, path, piece_octets):
    """The client sends what the transcript says, at once or octet by octet, and receives what it says."""
    dialogue = read_dialogue(path)
    server = serving(dialogue.account)
    server.site.empty()
    for unique_id, message in dialogue.messages.items():
        server.site.deliver(message.read_bytes(), base=unique_id.decode())
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock, sock.makefile("rb") as file:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for exchange in dialogue.exchanges:
            for start in range(0, len(exchange.sent), piece_octets):
                sock.sendall(exchange.sent[start : start + piece_octets])
            exchange.check([file.readline() for _ in exchange.expected])
        if not dialogue.exchanges[-1].closes:
            sock.shutdown(socket.SHUT_WR)
        assert file.read() == b"", "more than the transcript says"
    wait_until(lambda: not server.pids("session"))
    assert [name.encode().partition(b":")[0] for name in server.site.files()] == dialogue.left
    assert server.faults() == []

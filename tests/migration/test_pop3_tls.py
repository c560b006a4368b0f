"""The client and TLS, with a real server's: passwords reach nobody whose certificate is not believed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpop.migration import servers
from gpop.migration.pop3_client import Client, NotPop3
from gpop.migration.servers import TlsChoice
from tests.certificates import Authority
from tests.serving import PASSWORD, Server, Site


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the server's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Server]:
    """gpop, with one message for its user."""
    pair = authority.issue("localhost")
    site = Site(server__listen_tls=["127.0.0.1:0"], tls__certificates=[list(pair)])
    site.deliver(b"Subject: one\n\nbody\n", base="1000.a")
    with Server(site) as running:
        yield running
    site.remove()


def ids(url: str, choice: TlsChoice) -> list[bytes]:
    client = Client(servers.locate(url, choice), 10, time.monotonic() + 30)
    client.login(b"", b"user0", PASSWORD.encode())
    count, _ = client.drop_listing()
    found = client.unique_ids(count)
    client.quit()
    return found


def test_tls_from_the_start(server: Server, authority: Authority) -> None:
    """With a certificate of an authority that is believed."""
    url = f"pop3s://localhost:{server.tls_port}"
    assert ids(url, TlsChoice(ca_file=str(authority.file))) == [b"1000.a"]


def test_stls(server: Server, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """By STLS, which is what pop3:// is wherever it leads off this machine."""
    monkeypatch.setattr(servers, "_is_loopback", lambda _address: False)
    url = f"pop3://localhost:{server.port}"
    assert ids(url, TlsChoice(ca_file=str(authority.file))) == [b"1000.a"]
    with pytest.raises(NotPop3, match="certificate not believed"):
        ids(url, TlsChoice())


def test_certificates_that_are_not_believed(server: Server, authority: Authority, tmp_path: Path) -> None:
    """Of an unknown authority, or for another name: only if any will do."""
    url = f"pop3s://localhost:{server.tls_port}"
    other = Authority(tmp_path / "other")
    for choice in (TlsChoice(), TlsChoice(ca_file=str(other.file))):
        with pytest.raises(NotPop3, match="certificate not believed"):
            ids(url, choice)
    with pytest.raises(NotPop3, match="IP address mismatch"):
        ids(f"pop3s://127.0.0.1:{server.tls_port}", TlsChoice(ca_file=str(authority.file)))
    assert ids(url, TlsChoice(check_certificate=False)) == [b"1000.a"]
    assert not server.events("login_refused")

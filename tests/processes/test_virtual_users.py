"""A whole gpop with virtual user maps: an address as a login name, over POP3."""

from __future__ import annotations

import os
import poplib

import pytest

from tests.serving import Server


def test_an_address_is_a_login_name(make_site, make_server) -> None:
    """The mail is the account's, the log has what was typed and what it came to; a map may change."""
    site = make_site()
    table = site.path / "virtual"
    table.write_text("boss@x.example user0\n")
    site.write_config(
        accounts_virtual__postfix_maps=[f"text:{table}"],
        accounts_virtual__domain_separators="%",
        accounts_virtual__local_domains=["local.example"],
    )
    site.deliver(b"Subject: hello\n\nhello\n")
    server: Server = make_server(site)
    for name in ("Boss@x.example", "boss%x.example", "user0@local.example", "user0"):
        client = server.pop(name)
        assert client.stat()[0] == 1
        client.quit()
        closed = server.wait_for_event("session_closed", user=name)
        assert closed["account"] == "user0"
    with pytest.raises(poplib.error_proto, match="AUTH"):
        server.pop("new@x.example")
    new = site.path / "virtual.new"
    new.write_text("new@x.example user0\n")
    os.rename(new, table)
    server.pop("new@x.example").quit()
    with pytest.raises(poplib.error_proto, match="AUTH"):
        server.pop("boss@x.example")
    os.unlink(table)
    with pytest.raises(poplib.error_proto, match="SYS/TEMP"):
        server.pop("user0")
    assert server.wait_for_event("login_refused", user="user0")["reason"] == "map_unavailable"

"""What a typed name means: case, separators, default domain, local domains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.accounts.names import FOLD, FOLD_DOMAIN, NameRules

LOCAL = "192.0.2.1"


def test_without_rules_a_name_is_what_it_is() -> None:
    """Whatever octets it has."""
    rules = NameRules()
    for name in (b"Joe", b"a%b", b"\xff\xfe", b"", b"@", b"joe@Example.ORG"):
        assert rules.login_name(name, LOCAL) == name == rules.account_name(name)


@pytest.mark.parametrize(
    "case, folded",
    [
        ("keep", b"J\xc3\x96E@X.Example"),
        (FOLD_DOMAIN, b"J\xc3\x96E@x.example"),
        (FOLD, b"j\xc3\xb6e@x.example"),
    ],
)
def test_case(case: str, folded: bytes) -> None:
    """Of the domain, or of all; letters outside ASCII have a lower case, octets that are none are left."""
    rules = NameRules(case=case)
    assert rules.login_name(b"J\xc3\x96E@X.Example", LOCAL) == folded
    assert rules.login_name(b"J\xd6E", LOCAL) == (b"j\xd6e" if case == FOLD else b"J\xd6E")


@pytest.mark.parametrize(
    "typed, name",
    [
        (b"joe%x.example", b"joe@x.example"),
        (b"a%b%x.example", b"a%b@x.example"),
        (b"a%b/x.example", b"a%b@x.example"),
        (b"a%b@x.example", b"a%b@x.example"),
        (b"%x.example", b"%x.example"),
        (b"joe", b"joe"),
    ],
)
def test_separators(typed: bytes, name: bytes) -> None:
    """The last one is the @ of a name that has none; a name begins with none."""
    assert NameRules(separators="%/").login_name(typed, LOCAL) == name


def test_the_domain_of_the_local_address() -> None:
    """By the address that the client has connected to, in any spelling; "*" is every other one."""
    rules = NameRules(
        default_domains={LOCAL: "one.example", "2001:db8::1": "six.example", "*": "any.example"}
    )
    assert rules.login_name(b"joe", LOCAL) == b"joe@one.example"
    assert rules.login_name(b"joe", "::ffff:192.0.2.1") == b"joe@one.example"
    assert rules.login_name(b"joe", "2001:DB8:0::1") == b"joe@six.example"
    assert rules.login_name(b"joe", "192.0.2.2") == b"joe@any.example"
    assert rules.login_name(b"joe", "") == b"joe@any.example"
    assert rules.login_name(b"joe@", LOCAL) == b"joe@one.example"
    assert rules.login_name(b"joe@own.example", LOCAL) == b"joe@own.example"
    assert rules.login_name(b"", LOCAL) == b""
    assert NameRules(default_domains={LOCAL: "one.example"}).login_name(b"joe", "192.0.2.2") == b"joe"


def test_the_order_of_the_rules() -> None:
    """A separator counts before a default domain is thought of, and its domain is folded."""
    rules = NameRules(FOLD, "%", {"*": "any.example"})
    assert rules.login_name(b"Joe%Own.Example", LOCAL) == b"joe@own.example"
    assert rules.login_name(b"Joe", LOCAL) == b"joe@any.example"


def test_local_domains() -> None:
    """Their users are the system's; nobody is the user of an empty name."""
    rules = NameRules(local_domains=["Local.example"])
    assert rules.account_name(b"joe@LOCAL.example") == b"joe"
    assert rules.account_name(b"joe@other.example") == b"joe@other.example"
    assert rules.account_name(b"@local.example") == b"@local.example"
    assert rules.account_name(b"joe") == b"joe"
    assert rules.is_local(b"local.EXAMPLE") and not rules.is_local(b"")


@given(name=st.binary(max_size=40), local=st.text(max_size=20))
def test_a_name_is_stable(name: bytes, local: str) -> None:
    """What the rules have made of a name they make of it again; any octets are a name."""
    rules = NameRules(FOLD, "%", {"*": "any.example"}, ["local.example"])
    once = rules.login_name(name, local)
    assert rules.login_name(once, local) == once
    assert rules.account_name(once) in (once, once.rpartition(b"@")[0])

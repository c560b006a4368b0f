"""Which keys are asked for a name and what a value means: sendmail's way and Postfix's."""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpop.accounts.maps import postfix, sendmail
from gpop.accounts.maps.errors import MapError, MapLoop
from gpop.accounts.maps.resolving import (
    MAX_STEPS,
    Asked,
    Became,
    PostfixTable,
    Rejected,
    SendmailTable,
    resolve,
)
from tests.accounts.maps import reference
from tests.accounts.maps.map_tools import MapTools, needs_map_tools

LOCAL = "local.example"


class Entries:
    """A map that is a dictionary."""

    def __init__(self, values: dict[str, str], name: str = "map") -> None:
        self.values = values
        self.name = name

    def get(self, key: bytes) -> bytes | None:
        value = self.values.get(key.decode("utf-8", "surrogateescape"))
        return None if value is None else value.encode()


def sendmail_table(*maps: dict[str, str], domains: Sequence[str] = ()) -> SendmailTable:
    return SendmailTable([Entries(each) for each in maps], domains)


def postfix_table(*maps: dict[str, str], delimiter: str = "+", propagate: bool = True) -> PostfixTable:
    def is_local(domain: bytes) -> bool:
        return domain.lower() == LOCAL.encode()

    named = [Entries(each, f"map{number}") for number, each in enumerate(maps)]
    return PostfixTable(named, delimiter, propagate, is_local)


def found(table: SendmailTable | PostfixTable, name: str) -> reference.Found:
    """One step, in the words of the reference."""
    result = table.look_up(name.encode(), lambda _step: None)
    if isinstance(result, Rejected):
        return "error:"
    return None if result is None else [each.decode() for each in result]


# sendmail


def test_sendmails_order() -> None:
    """The seven keys of a name with detail, those of an empty one, those of none."""
    assert [key for key, _ in sendmail.patterns(b"User+Detail@Dom")] == [
        b"user+detail@dom",
        b"user++@dom",
        b"user+*@dom",
        b"user@dom",
        b"++@dom",
        b"+*@dom",
        b"@dom",
    ]
    assert [key for key, _ in sendmail.patterns(b"user+@dom")] == [
        b"user+@dom",
        b"user+*@dom",
        b"user@dom",
        b"+*@dom",
        b"@dom",
    ]
    assert [key for key, _ in sendmail.patterns(b"user@dom")] == [b"user@dom", b"@dom"]
    assert [key for key, _ in sendmail.patterns(b"user")] == [b"user"]


def test_what_the_percent_signs_stand_for() -> None:
    """The whole local part for the exact key; user, detail and +detail for the others; case is kept."""
    table = sendmail_table(
        {"@old.example": "%1%3@new.example", "a+b@x.example": "%1-%2", "@y.example": "100%%"}
    )
    assert found(table, "Joe+Lists@old.example") == ["Joe+Lists@new.example"]
    assert found(table, "joe@old.example") == ["joe@new.example"]
    assert found(table, "a+b@x.example") == ["a+b-"]
    assert found(table, "any@y.example") == ["100%"]


@pytest.mark.parametrize(
    "value, text",
    [
        ("error:nouser 550 No such user here", "550 No such user here"),
        ("error:5.7.0:550 Access denied", "550 Access denied"),
        ("error:5.1.1 gone", "gone"),
        ("error:nouser", "nouser"),
        ("ERROR:D.S.N:550 text", "text"),
        ("error:", ""),
    ],
)
def test_an_error_entry_is_a_refusal_with_its_text(value: str, text: str) -> None:
    """Whatever its form, nobody logs in by it."""
    result = sendmail_table({"joe@x.example": value}).look_up(b"joe@x.example", lambda _step: None)
    assert result == Rejected("virtual_user_rejected", text)


def test_only_the_domains_that_are_named_are_looked_up() -> None:
    """As with sendmail's class VirtHost; an empty list is all of them."""
    entries = {"joe@x.example": "jim", "joe@y.example": "ann"}
    assert found(sendmail_table(entries, domains=["X.example"]), "joe@x.EXAMPLE") == ["jim"]
    assert found(sendmail_table(entries, domains=["X.example"]), "joe@y.example") is None
    assert found(sendmail_table(entries), "joe@y.example") == ["ann"]


# Postfix


def test_postfixs_order() -> None:
    """With the user alone only where the domain is a local one."""
    assert postfix.patterns(b"User+Ext@Dom", b"+", lambda _: False) == [
        (b"user+ext@dom", b""),
        (b"user@dom", b"+Ext"),
        (b"@dom", b""),
    ]
    assert postfix.patterns(b"user+ext@dom", b"+", lambda _: True) == [
        (b"user+ext@dom", b""),
        (b"user@dom", b"+ext"),
        (b"user+ext", b""),
        (b"user", b"+ext"),
        (b"@dom", b""),
    ]
    assert postfix.patterns(b"user+ext@dom", b"", lambda _: False) == [(b"user+ext@dom", b""), (b"@dom", b"")]


def test_a_domain_entry_is_nobodys_name() -> None:
    """`example.org anything` marks a domain as virtual; who types it does not log in as "anything"."""
    assert found(postfix_table({"example.org": "anything"}), "example.org") is None
    assert found(postfix_table({"joe": "jim"}), "joe") == ["jim"]


def test_every_map_is_asked_for_a_key_before_the_next_key() -> None:
    """A catch-all in the first map does not hide a user in the second."""
    asked: list[tuple[str, bytes]] = []
    table = postfix_table({"@x.example": "all"}, {"joe@x.example": "jim"})
    result = table.look_up(b"joe@x.example", lambda step: asked.append((step.map_name, step.key)))
    assert result == [b"jim"]
    assert asked == [("map0", b"joe@x.example"), ("map1", b"joe@x.example")]


def test_unmatched_extensions() -> None:
    """Put behind the result if they are propagated; a catch-all has matched all of the name: none is left."""
    entries = {
        "joe@x.example": "jim",
        "@y.example": "all",
        "@z.example": "@new.example",
        "ann@x.example": "@w.example",
    }
    assert found(postfix_table(entries), "joe+a@x.example") == ["jim+a"]
    assert found(postfix_table(entries, propagate=False), "joe+a@x.example") == ["jim"]
    assert found(postfix_table(entries), "joe+a@y.example") == ["all"]
    assert found(postfix_table(entries), "joe+a@z.example") == ["joe+a@new.example"]
    assert found(postfix_table(entries), "ann+a@x.example") == ["ann+a@w.example"]
    assert found(postfix_table(entries, propagate=False), "ann+a@x.example") == ["ann@w.example"]


def test_quoted_names() -> None:
    """A key stands in quotes where a header would need them; the account does not."""
    table = postfix_table({'"joe smith"@x.example': 'jim, "a, b"@y.example'})
    assert found(table, "Joe Smith@x.example") == ["jim", "a, b@y.example"]


# Both


@given(local=st.binary(max_size=20))
def test_quoting_is_undone(local: bytes) -> None:
    """Any local part survives; in a list too, whatever commas and quotes are in it."""
    assert postfix.unquoted(postfix.quoted(local)) == local
    assert postfix.split_list(postfix.quoted(local) + b", next") == [postfix.quoted(local), b"next"]


LOCALS = st.text("aB+", min_size=1, max_size=5)
NAMES = st.builds(str.__add__, LOCALS, st.sampled_from(["", "@x.example", "@LOCAL.example", "@z.example"]))
KEYS = st.one_of(
    NAMES.map(str.lower),
    st.builds(
        str.__add__,
        st.sampled_from(["", "++", "+*", "a++", "a+*", "ab+*", "a", "ab", "b"]),
        st.sampled_from(["@x.example", "@local.example", "@z.example"]),
    ),
)
VALUES = st.sampled_from(
    [
        "jim",
        "%1",
        "%1-%2@x.example",
        "%1%3@z.example",
        "%0",
        "%%1%9",
        "@z.example",
        "a, b@x.example",
        "error:nouser",
    ]
)
MAPS = st.lists(st.dictionaries(KEYS, VALUES, max_size=6), min_size=1, max_size=3)


@given(maps=MAPS, name=NAMES)
@example(maps=[{"b": "%0"}], name="B")  # %0 is the key, also of a name without a domain
def test_sendmails_table_is_what_the_reference_says(maps: list[dict[str, str]], name: str) -> None:
    """For any maps and any name."""
    expected = reference.sendmail(maps, name)
    if isinstance(expected, str):
        assert found(sendmail_table(*maps), name) == "error:"
    elif expected and "," not in expected[0]:
        assert found(sendmail_table(*maps), name) == [each for each in expected if each]
    else:
        assert (found(sendmail_table(*maps), name) is None) == (expected is None)


@given(maps=MAPS, name=NAMES, delimiter=st.sampled_from(["+", "", "b"]), propagate=st.booleans())
def test_postfixs_table_is_what_the_reference_says(
    maps: list[dict[str, str]], name: str, delimiter: str, propagate: bool
) -> None:
    """For any maps, names and settings."""
    expected = reference.postfix(maps, name, delimiter, propagate, {LOCAL})
    table = postfix_table(*maps, delimiter=delimiter, propagate=propagate)
    assert found(table, name) == expected


# To the end


def test_a_name_is_followed_to_its_end() -> None:
    """What a map says is looked up again; every step is told to who asks."""
    steps: list[Asked | Became] = []
    table = sendmail_table({"joe@x.example": "joe@y.example", "joe@y.example": "jim"})
    assert resolve(table, b"joe@x.example", steps.append) == b"jim"
    became = [(step.name, step.result) for step in steps if isinstance(step, Became)]
    assert became == [(b"joe@x.example", b"joe@y.example"), (b"joe@y.example", b"jim")]
    assert steps[-1] == Asked("map", b"jim", None)
    assert resolve(table, b"ann@x.example") == b"ann@x.example"


def test_a_name_that_maps_to_itself_is_the_end() -> None:
    """In the map's own spelling; also as one of several, which is how Postfix keeps a copy of mail."""
    table = postfix_table(
        {"joe@x.example": "Joe@x.example", "ann@x.example": "backup@y.example, ann@x.example"}
    )
    assert resolve(table, b"JOE@x.example") == b"Joe@x.example"
    assert resolve(table, b"ann@x.example") == b"ann@x.example"


@pytest.mark.parametrize(
    "entries",
    [
        {"a@x.example": "b@x.example", "b@x.example": "A@x.example"},
        {f"u{n}@x.example": f"u{n + 1}@x.example" for n in range(MAX_STEPS + 5)}
        | {"a@x.example": "u0@x.example"},
    ],
)
def test_a_way_without_end_is_an_error(entries: dict[str, str]) -> None:
    """A loop, and a chain that is longer than any that is meant; both within MAX_STEPS look-ups."""
    with pytest.raises(MapLoop, match=r"(a loop|more than 50 steps): .*@x\.example -> "):
        resolve(postfix_table(entries), b"a@x.example")


def test_a_name_that_grows_is_an_error() -> None:
    """@dom x%1@dom is asked for no longer than names are."""
    with pytest.raises(MapError):
        resolve(sendmail_table({"@x.example": "xxxxxxxxxx%1@x.example"}), b"joe@x.example")


@pytest.mark.parametrize("value", ["a b", "a@x.example, b@x.example"])
def test_several_names_are_nobodys_login(value: str) -> None:
    """Mail may go to many; a login is one account's. No password of theirs is asked."""
    for table in (postfix_table({"sales@x.example": value}), sendmail_table({"sales@x.example": value})):
        rejected = resolve(table, b"sales@x.example")
        assert isinstance(rejected, Rejected) and rejected.reason == "virtual_user_is_a_list"
        assert "sales@x.example" in rejected.text


@pytest.mark.parametrize("value", ["", " ", "a\x01b", "x" * 256])
def test_a_value_that_is_no_name_is_an_error(value: str) -> None:
    """And not "no such user"."""
    with pytest.raises(MapError):
        resolve(sendmail_table({"joe@x.example": value}), b"joe@x.example")


# The real sendmail


@needs_map_tools
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sendmail is kept from the network in a namespace")
def test_sendmail_itself_says_the_same(own_map_tools: MapTools) -> None:
    """A thousand names in tables at random: `sendmail -bt` with its real rule set, and gpop."""
    if subprocess.run(["unshare", "--net", "--uts", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces to be had here")
    seed = random.randrange(2**32)
    chosen = random.Random(seed)
    cf = own_map_tools.sendmail_cf(own_map_tools.folder / "virtusertable", ["x.example", "y.example"])
    locals_ = [a + b for a in ("ab", "cd", "ef") for b in ("", "+", "+gh", "+ij", "+gh+kl")]
    names = [f"{local}@{domain}" for local in locals_ for domain in ("x.example", "y.example")]
    keys = [
        *names,
        *(f"{a}{b}@{d}.example" for a in ("", "ab", "cd", "ef") for b in ("", "++", "+*") for d in "xy"),
    ]
    values = [
        "jim",
        "%1",
        "u_%1_%2",
        "%1%3@y.example",
        "ab@x.example",
        "error:nouser 550 no",
        "error:5.7.0:550 no",
    ]
    for _ in range(30):
        entries = {key: chosen.choice(values) for key in chosen.sample(keys, 12)}
        text = "".join(f"{key}\t{value}\n" for key, value in entries.items()).encode()
        own_map_tools.makemap("hash", text, path=own_map_tools.folder / "virtusertable")
        answers = _answers(own_map_tools.sendmail_parse(cf, names))
        table = sendmail_table(entries, domains=["x.example", "y.example"])
        assert len(answers) == len(names), seed
        for name, answer in zip(names, answers, strict=True):
            ours = _gpop_says(table, name)
            # Where sendmail gives up, it is a loop; one of a name with itself is what gpop takes for the end.
            endless = answer == "endless" and (ours == "error" or found(table, ours) == [ours])
            assert endless or ours == answer, (seed, name, entries)


GIVEN_UP = "status 78"  # EX_CONFIG: too many recursions


def _answers(octets: bytes) -> list[str]:
    """For each name: the local user or address that sendmail has found, "error", or "endless"."""
    answers = []
    for part in octets.decode().split("\n> ")[1:]:
        end = re.findall(r"^parse +returns: (.*)$", part, re.MULTILINE)
        if not end:
            continue
        last = end[-1]
        if "$# error" in last or GIVEN_UP in part:
            answers.append("endless" if GIVEN_UP in part else "error")
            continue
        user = re.search(r"\$: (.*)$", last)
        assert user, last
        answers.append(re.sub(r"[ <>]", "", user[1]).removesuffix("."))
    return answers


def _gpop_says(table: SendmailTable, name: str) -> str:
    try:
        result = resolve(table, name.encode())
    except MapError:
        return "error"
    return "error" if isinstance(result, Rejected) else result.decode()

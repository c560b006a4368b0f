"""The command table, its shapes, and what CAPA reads from it: `gpop.pop3.commands`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.pop3 import authorization, transaction
from gpop.pop3.commands import (
    AUTHORIZATION,
    COMMANDS,
    STATES,
    TRANSACTION,
    Offer,
    capability_list,
    parse,
    policies,
)
from gpop.pop3.decisions import Decision, Login, RefusedLogin, Reply
from gpop.pop3.wire import HAS_NUL, TOO_LONG, LineError
from tests.pop3.strategies import thorough

HANDLERS = {AUTHORIZATION: authorization._HANDLERS, TRANSACTION: transaction._HANDLERS}


def refused(line: bytes | LineError, state: str = TRANSACTION) -> bool:
    parsed = parse(line, state)
    return isinstance(parsed, Reply) and parsed.octets.startswith(b"-ERR ")


@pytest.mark.parametrize("state", STATES)
def test_every_command_of_a_state_has_a_handler_and_no_other_has(state):
    """The table and the code that carries it out cannot disagree about what is legal."""
    legal = {keyword for keyword, command in COMMANDS.items() if state in command.states}
    assert set(HANDLERS[state]) == legal


def test_keywords_are_three_or_four_letters():
    """RFC 1939 §3; a digit is in UTF8 alone (RFC 6856)."""
    assert all(keyword.isalnum() and keyword.isupper() and len(keyword) in (3, 4) for keyword in COMMANDS)


@pytest.mark.parametrize("keyword", [b"STAT", b"stat", b"StAt"])
def test_keywords_are_case_insensitive(keyword):
    """RFC 1939 §3."""
    assert parse(keyword, TRANSACTION) == (b"STAT", ())


@pytest.mark.parametrize("line", [b"", b" ", b"XYZZY", b" STAT", b"STAT\t", b"ST\xe4T", b"APOP x 0", b"LAST"])
def test_unknown_commands_are_refused(line):
    """Nothing is guessed: what is not in the table is an error."""
    assert refused(line, AUTHORIZATION)
    assert refused(line, TRANSACTION)


@pytest.mark.parametrize("state", STATES)
def test_commands_of_the_other_state_are_refused(state):
    """A command in the wrong state is -ERR whatever its argument, and not a disconnect."""
    for keyword, command in COMMANDS.items():
        if state not in command.states:
            assert refused(keyword, state)
            assert refused(keyword + b" 1", state)


@pytest.mark.parametrize("error", (HAS_NUL, TOO_LONG))
def test_line_errors_are_refused(error):
    """What the line reader could not return as a line is answered with one -ERR."""
    assert refused(error, AUTHORIZATION)
    assert refused(error, TRANSACTION)


@pytest.mark.parametrize("keyword", [b"STAT", b"RSET", b"NOOP", b"QUIT", b"CAPA"])
def test_unwanted_arguments_are_refused(keyword):
    """A command without arguments that gets one is an error; spaces at the end are no argument."""
    assert refused(keyword + b" 1")
    assert parse(keyword + b"  ", TRANSACTION) == (keyword, ())


@pytest.mark.parametrize(
    "word",
    [b"-1", b"+1", b"1x", b"x", b"0x1", b"1.0", b"1 2", b" 1", b"1\t", b"1\r", b"\xb2", b"1_0", b"1" * 21],
)
def test_numbers_are_digits_only_and_bounded(word):
    """No sign, no trailing noise, no other digits than ASCII's, no endless number."""
    for keyword in (b"LIST ", b"UIDL ", b"RETR ", b"DELE "):
        assert refused(keyword + word)
    assert refused(b"TOP " + word + b" 1")
    assert refused(b"TOP 1 " + word)


def test_numbers_do_not_wrap():
    """2**32 + 1 and 2**64 + 1 are not 1."""
    assert parse(b"LIST 4294967297", TRANSACTION) == (b"LIST", (2**32 + 1,))
    assert parse(b"LIST 18446744073709551617", TRANSACTION) == (b"LIST", (2**64 + 1,))


def test_optional_message_number():
    """LIST and UIDL work with and without one; RETR and DELE need it."""
    assert parse(b"LIST", TRANSACTION) == (b"LIST", (None,))
    assert parse(b"UIDL ", TRANSACTION) == (b"UIDL", (None,))
    assert parse(b"uidl 2 ", TRANSACTION) == (b"UIDL", (2,))
    assert refused(b"RETR")
    assert refused(b"DELE ")


def test_top_needs_both_arguments():
    """RFC 1939 §7: a message-number and a line count, one space between them."""
    assert parse(b"TOP 1 0", TRANSACTION) == (b"TOP", (1, 0))
    for line in (b"TOP", b"TOP 1", b"TOP 1 ", b"TOP  1", b"TOP 1  0", b"TOP 1 0 0"):
        assert refused(line)


def test_names_and_passwords_are_the_rest_of_the_line():
    """One space is cut off; every other octet is the argument's, spaces in front and at the end too."""
    assert parse(b"PASS  a b ", AUTHORIZATION) == (b"PASS", (b" a b ",))
    assert parse(b"USER Tim O'Tay", AUTHORIZATION) == (b"USER", (b"Tim O'Tay",))


@thorough
@given(line=st.binary(max_size=40), state=st.sampled_from(STATES))
def test_any_line_is_a_command_or_a_refusal(line, state):
    """No octets raise an exception."""
    assert refused(line, state) or parse(line, state)[0] in COMMANDS


def capabilities(*mechanisms, **offer) -> list[str]:
    octets = capability_list(Offer(mechanisms=mechanisms, **offer)).octets
    first, *lines, terminator, nothing = octets.decode("ascii").split("\r\n")
    assert (first.startswith("+OK"), terminator, nothing) == (True, ".", "")
    return lines


def test_capabilities_of_rfc_2449():
    """Everything gpop promises is listed once, the optional commands under their own keyword."""
    lines = capabilities("PLAIN", "LOGIN")
    assert sorted(lines) == sorted(
        [
            *("USER", "TOP", "UIDL", "SASL PLAIN LOGIN", "UTF8 USER", "LANG"),
            *("RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "EXPIRE NEVER", "IMPLEMENTATION gpop"),
        ]
    )


def test_without_a_mechanism_there_is_no_sasl():
    """A line "SASL" with nothing behind it would be a lie; everything else is announced as ever."""
    with_one, without = capabilities("PLAIN"), capabilities()
    assert [line for line in with_one if line != "SASL PLAIN"] == without
    assert not any(line.startswith("SASL") for line in without)


def test_a_login_delay_is_announced_if_there_is_one():
    """Nothing else changes, and no "USER" follows: it is the same for all (RFC 2449 §6.5)."""
    listed = capability_list(Offer(policies=policies(300, -1))).octets.splitlines()
    without = capability_list(Offer(policies=policies(0, -1))).octets.splitlines()
    assert sorted(listed) == sorted([*without, b"LOGIN-DELAY 300"])


@pytest.mark.parametrize(("days", "announced"), [(-1, b"EXPIRE NEVER"), (0, b"EXPIRE 0"), (30, b"EXPIRE 30")])
def test_expire_is_never_only_where_that_is_true(days, announced):
    """The days that a retrieved message stays at least, the same for all (RFC 2449 §6.7)."""
    listed = capability_list(Offer(policies=policies(0, days))).octets.splitlines()
    assert [line for line in listed if line.startswith(b"EXPIRE")] == [announced]


def test_capa_says_what_is_offered_now():
    """STLS only where TLS can begin, USER and SASL only where a login would be heard (RFC 2595 §2.4, §4)."""
    everything = capabilities("PLAIN", "LOGIN", stls=True)
    assert set(everything) - set(capabilities("PLAIN", "LOGIN")) == {"STLS"}
    no_logins = capabilities(user=False, stls=True)
    assert set(everything) - set(no_logins) == {"USER", "SASL PLAIN LOGIN"}


def test_login_hides_its_password():
    """A decision may be printed by anything; the password must not be."""
    login = Login(b"tim", b"tanstaaf", "USER")
    assert "tanstaaf" not in repr(login)
    assert "tanstaaf" not in f"{login} {[login]}"
    assert "b'tim'" in repr(login)


def test_decisions_are_values():
    """Equal if of the same kind with the same fields, and only then."""
    assert Reply(b"x") == Reply(b"x")
    assert Reply(b"x") != Reply(b"y")
    assert Reply(b"x") != b"x"
    assert RefusedLogin(b"x", b"tim", "USER", "why") != Reply(b"x")
    assert len({Reply(b"x"), Reply(b"x"), Login(b"n", b"p", "USER"), Login(b"n", b"q", "USER")}) == 3
    assert isinstance(RefusedLogin(b"x", b"tim", "USER", "why"), Decision)

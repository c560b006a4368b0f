"""The TRANSACTION state: `gpop.pop3.transaction` on a maildrop in memory."""

from __future__ import annotations

import pytest
from hypothesis import given

from gpop.pop3.authorization import Authorization
from gpop.pop3.decisions import Decision, EnterUpdate, Reply, SendListing, SendMessage
from gpop.pop3.transaction import Transaction
from gpop.pop3.wire import HAS_NUL, TOO_LONG, LineReader
from tests.pop3.fake_maildrop import FakeMaildrop
from tests.pop3.strategies import client_octets, cuts, pieces, thorough

MESSAGES = {b"id-1": b"To: x\n\nbody\n", b"id-2": b"To: y\r\n\r\n.\r\n", b"id-3": b"no end"}


def converse(chunks: list[bytes], maildrop: FakeMaildrop | None = None) -> list[Decision]:
    """Feed what a client sends as the session does, until it enters UPDATE."""
    transaction, reader, decisions = Transaction(maildrop or FakeMaildrop(MESSAGES)), LineReader(), []
    for chunk in chunks:
        reader.feed(chunk)
        while (line := reader.next_line()) is not None:
            decisions.append(transaction.handle(line))
            if isinstance(decisions[-1], EnterUpdate):
                return decisions
    return decisions


def converse_every_way(octets: bytes) -> list[Decision]:
    """Whole, octet by octet, and with trailing data: the decisions must be the same."""
    whole = converse([octets])
    assert whole == converse([octets[i : i + 1] for i in range(len(octets))])
    assert whole == converse([octets + b"trailing"])
    return whole


def answers(*lines: bytes) -> list[Decision]:
    return converse_every_way(b"".join(line + b"\r\n" for line in lines))


def is_error(decision: Decision) -> bool:
    return isinstance(decision, Reply) and decision.octets.startswith(b"-ERR ")


def is_ok(decision: Decision) -> bool:
    return isinstance(decision, Reply) and decision.octets.startswith(b"+OK")


def test_stat_is_two_numbers():
    """The drop listing: clients stumble over any word behind it (RFC 1939 §5)."""
    assert answers(b"STAT") == [Reply(b"+OK 3 35\r\n")]


def test_stat_leaves_out_marked_messages():
    """RFC 1939 §5; RSET brings them back."""
    _, fewer, _, all_of_them = answers(b"DELE 1", b"STAT", b"RSET", b"STAT")
    assert (fewer, all_of_them) == (Reply(b"+OK 2 20\r\n"), Reply(b"+OK 3 35\r\n"))


def test_list_and_uidl_of_one_message_are_single_lines():
    """Number and octets, number and unique-id: clients have been met that choke on less or more."""
    assert answers(b"LIST 2", b"UIDL 2") == [Reply(b"+OK 2 12\r\n"), Reply(b"+OK 2 id-2\r\n")]


def test_list_and_uidl_without_number_are_whole_listings():
    """They come from the cache as they lie there; nothing is done per message here."""
    assert answers(b"LIST", b"UIDL") == [SendListing("LIST"), SendListing("UIDL")]


def test_retr_and_top_send_the_message_at_the_index():
    """Message-numbers begin with 1, indices with 0."""
    assert answers(b"RETR 1", b"TOP 3 0", b"TOP 2 5") == [
        SendMessage(0, None),
        SendMessage(2, 0),
        SendMessage(1, 5),
    ]


@pytest.mark.parametrize("command", [b"LIST %d", b"UIDL %d", b"RETR %d", b"TOP %d 1", b"DELE %d"])
@pytest.mark.parametrize("number", [0, 4, 2**32 + 1, 2**64 + 1, 10**19])
def test_numbers_out_of_range_are_errors(command, number):
    """0, n + 1, and numbers that would wrap to 1 elsewhere."""
    assert all(is_error(decision) for decision in answers(command % number))


@pytest.mark.parametrize("command", [b"LIST 1", b"UIDL 1", b"RETR 1", b"TOP 1 1", b"DELE 1"])
def test_marked_messages_are_errors(command):
    """A message marked as deleted can be referred to by no command; its number is nobody else's."""
    marked, refused, other = answers(b"DELE 1", command, b"UIDL 2")
    assert is_ok(marked)
    assert is_error(refused)
    assert other == Reply(b"+OK 2 id-2\r\n")


def test_rset_unmarks_everything():
    """RFC 1939 §5."""
    decisions = answers(b"DELE 1", b"DELE 3", b"RSET", b"UIDL 1", b"DELE 3")
    assert all(is_ok(decision) for decision in decisions)


def test_noop_does_nothing():
    """RFC 1939 §5."""
    assert answers(b"NOOP") == [Reply(b"+OK\r\n")]


@pytest.mark.parametrize("command", [b"USER tim", b"PASS x", b"AUTH", b"AUTH PLAIN AHRpbQBw", b"APOP x 0"])
def test_second_login_is_an_error(command):
    """Who is logged in stays who he is, and stays logged in."""
    refused, stat = answers(command, b"STAT")
    assert is_error(refused)
    assert stat == Reply(b"+OK 3 35\r\n")


@pytest.mark.parametrize(
    "command", [b"STAT 1", b"RSET 1", b"NOOP x", b"QUIT now", b"RETR", b"DELE", b"TOP 1", b"TOP", b"LIST 1 2"]
)
def test_wrong_arguments_are_errors(command):
    """An argument too many or too few is an error, and QUIT with one does not quit."""
    refused, stat = answers(command, b"STAT")
    assert is_error(refused)
    assert stat == Reply(b"+OK 3 35\r\n")


def test_quit_asks_for_update_and_ends_the_conversation():
    """What is pipelined behind QUIT is not carried out."""
    maildrop = FakeMaildrop(MESSAGES)
    assert converse([b"DELE 2\r\nQUIT\r\nDELE 1\r\n"], maildrop)[1:] == [EnterUpdate()]
    assert maildrop.remaining() == [b"id-1", b"id-3"]


def test_capa_repeats_what_was_announced_before_login():
    """RFC 2449 §5: capabilities of AUTHORIZATION are announced in both states."""
    [capabilities] = answers(b"CAPA")
    assert capabilities == Authorization().handle(b"CAPA")
    assert b"\r\nUSER\r\n" in capabilities.octets


@pytest.mark.parametrize("error", (HAS_NUL, TOO_LONG))
def test_line_errors_do_not_end_the_session(error):
    """One -ERR, and the session goes on."""
    transaction = Transaction(FakeMaildrop(MESSAGES))
    assert is_error(transaction.handle(error))
    assert transaction.handle(b"NOOP") == Reply(b"+OK\r\n")


def test_empty_maildrop():
    """No message: everything is answered, nothing can be referred to."""
    assert converse([b"STAT\r\nLIST\r\nRETR 1\r\nQUIT\r\n"], FakeMaildrop({}))[::3] == [
        Reply(b"+OK 0 0\r\n"),
        EnterUpdate(),
    ]


@thorough
@given(octets=client_octets, cuts=cuts)
def test_any_octets_lead_to_decisions(octets, cuts):
    """Whatever a client sends, in whatever pieces: decisions about messages that are there, no traceback."""
    decisions = converse(pieces(octets, cuts))
    assert decisions == converse([octets])
    for decision in decisions:
        if isinstance(decision, SendMessage):
            assert 0 <= decision.index < len(MESSAGES)
        if isinstance(decision, Reply):
            assert decision.octets.startswith((b"+OK", b"-ERR ")) and decision.octets.endswith(b"\r\n")


@thorough
@given(octets=client_octets)
def test_only_dele_marks(octets):
    """No other command changes what UPDATE will remove."""
    maildrop = FakeMaildrop(MESSAGES)
    converse([octets.replace(b"DELE", b"NOOP")], maildrop)
    assert maildrop.marked == set()

"""LANG and UTF8 (RFC 6856): `gpop.pop3.languages`, and what both states make of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.pop3.authorization import LOGIN_REFUSED, Authorization
from gpop.pop3.decisions import Reply, SendListing, SendMessage
from gpop.pop3.languages import Language, Languages, Speech
from gpop.pop3.transaction import Transaction
from gpop.pop3.wire import MAX_REPLY_OCTETS, err, multiline, ok
from tests.pop3.fake_maildrop import FakeMaildrop

SVENSKA = """
# A language of the tests.
name: Svenska på
ascii: å=a ä=a
language changed = språk ändrat
Unknown command = Okänt kommando
Authentication failed = Inloggningen misslyckades
this line says nothing
""".encode()
BRAZILIAN = b"name: Portugu\xc3\xaas\nascii: \xc3\xaa=e\n"
FILES = {"pt-BR": BRAZILIAN, "sv": SVENSKA}
MESSAGES = {b"bye": b"To: x\n\nbody\n", b"id-2": "To: ä\n\nbody\n".encode()}


def speech(utf8: bool = False, preferred: str = "en") -> Speech:
    return Speech(Languages(FILES, preferred), utf8=utf8)


def states(spoken: Speech) -> list[Authorization | Transaction]:
    return [Authorization(speech=spoken), Transaction(FakeMaildrop(MESSAGES), speech=spoken)]


# --- LANG


def test_lang_alone_lists():
    """Tag and name in the language itself, nothing else on the line: the current one has no mark (§3.2)."""
    for state in states(speech(utf8=True)):
        lines = state.handle(b"LANG").octets.decode().split("\r\n")
        assert lines == [
            "+OK language list follows",
            "en English",
            "pt-BR Português",
            "sv Svenska på",
            ".",
            "",
        ]


def test_names_are_in_ascii_before_utf8():
    """§2.1; as the RFC writes them itself."""
    assert b"\r\npt-BR Portugues\r\nsv Svenska pa\r\n" in states(speech())[0].handle(b"LANG").octets


def test_lang_changes_the_language_with_its_own_reply():
    """§3.2: +OK, the exact tag, a text in the new language; and so from then on."""
    for state in states(speech(utf8=True)):
        assert state.handle(b"LANG sv") == Reply("+OK sv språk ändrat\r\n".encode())
        assert state.speech.said(state.handle(b"XYZZY").octets) == "-ERR Okänt kommando\r\n".encode()
        assert state.handle(b"LANG en") == Reply(b"+OK en language changed\r\n")
        assert state.speech.said(state.handle(b"XYZZY").octets) == b"-ERR Unknown command\r\n"


def test_before_utf8_a_text_is_in_ascii():
    """§2.1: no octet outside it, whatever the language; UTF8 changes that at once."""
    authorization = states(speech())[0]
    assert authorization.handle(b"LANG sv") == Reply(b"+OK sv sprak andrat\r\n")
    assert authorization.speech.said(err("Unknown command")) == b"-ERR Okant kommando\r\n"
    authorization.handle(b"UTF8")
    assert authorization.speech.said(err("Unknown command")) == "-ERR Okänt kommando\r\n".encode()


@pytest.mark.parametrize(
    "wanted", [b"mul", b"s", b"svx", b"*-BR", b"x-sv", b"\xff", b"sv_SE", b"-", b"en, sv"]
)
def test_an_unknown_language_changes_nothing(wanted):
    """§3.2: -ERR, in the language that there was; nor is it repeated to the client."""
    for state in states(speech()):
        state.handle(b"LANG sv")
        answer = state.handle(b"LANG " + wanted)
        assert answer.octets.startswith(b"-ERR ") and wanted not in answer.octets[5:].split()
        assert state.speech.tag == "sv"


@pytest.mark.parametrize(
    "wanted, tag", [("SV", "sv"), ("sv-SE", "sv"), ("sv-x-odd", "sv"), ("pt", "pt-BR"), ("PT-br", "pt-BR")]
)
def test_a_language_range_matches_its_language(wanted, tag):
    """Whatever the case, wider or narrower (RFC 4647); the answer has the exact tag."""
    assert states(speech())[0].handle(b"LANG " + wanted.encode()).octets.startswith(f"+OK {tag} ".encode())


def test_star_is_the_language_that_the_server_prefers():
    """§3.2; until somebody asks for it replies are in English."""
    for preferred in ("en", "sv"):
        for state in (states(speech(preferred=preferred))[at] for at in (0, 1)):
            assert state.speech.said(err("Unknown command")) == b"-ERR Unknown command\r\n"
            assert state.handle(b"LANG *").octets.startswith(f"+OK {preferred} ".encode())


def test_star_tells_nothing_about_a_user():
    """§7: it is the same before USER and after it, whoever is named, and after a refused login."""
    answers = set()
    for lines in ([], [b"USER tim"], [b"USER nobody"], [b"USER tim", b"PASS wrong"]):
        authorization = states(speech(preferred="sv"))[0]
        for line in lines:
            authorization.handle(line)
        if len(lines) == 2:
            authorization.login_refused()
        answers.add(authorization.handle(b"LANG *"))
    assert len(answers) == 1


def test_lang_does_not_forget_user():
    """It is no part of a login."""
    authorization = states(speech())[0]
    for line in (b"USER tim", b"LANG sv", b"UTF8"):
        authorization.handle(line)
    assert authorization.handle(b"PASS x").name == b"tim"


# --- What is said


def test_response_codes_stay_as_they_are():
    """[AUTH] and the like are for programs (RFC 2449 §6.4)."""
    spoken = Speech(Languages(FILES), "sv")
    assert spoken.said(LOGIN_REFUSED) == b"-ERR [AUTH] Inloggningen misslyckades\r\n"


@pytest.mark.parametrize(
    "reply", [b"+OK 1 bye\r\n", b"+OK 2 120\r\n", b"+OK\r\n", b"+ VXNlcm5hbWU6\r\n", b"+ \r\n"]
)
def test_numbers_unique_ids_and_challenges_stay_as_they_are(reply):
    """STAT, LIST n and UIDL n have one format, even if a unique-id is a word that is said elsewhere."""
    spoken = Speech(Languages({"de": b"bye = tschau"}), "de")
    assert spoken.said(reply) == reply


def test_of_a_multi_line_response_only_the_first_line_is_text():
    """What follows is data."""
    spoken = Speech(Languages(FILES), "sv")
    response = multiline(ok("Unknown command"), [b"Unknown command"])
    assert spoken.said(response) == b"+OK Okant kommando\r\nUnknown command\r\n.\r\n"


def test_what_has_no_translation_is_said_in_english():
    """A text that somebody forgot is better than none."""
    spoken = Speech(Languages(FILES), "sv")
    assert spoken.said(err("No such message")) == b"-ERR No such message\r\n"
    assert spoken.text("octets") == b"octets"


def test_the_choice_travels_to_the_session():
    """By its tag; one that is not known there (fronts are not believed) is English."""
    spoken = speech()
    assert spoken.tag == ""
    spoken.lang(b"pt")
    assert (spoken.tag, Speech(Languages(FILES), spoken.tag).tag) == ("pt-BR", "pt-BR")
    assert Speech(Languages(FILES), "../../etc/passwd").tag == ""


@given(octets=st.binary(max_size=200), wanted=st.binary(max_size=60), utf8=st.booleans())
def test_any_octets_are_a_language_file_and_any_a_range(octets, wanted, utf8):
    """No file's octets and no argument of a client's raise an exception; before UTF8 all is ASCII."""
    spoken = Speech(Languages({"xx": octets}), "xx", utf8)
    replies = [spoken.said(LOGIN_REFUSED), spoken.lang(b"").octets, spoken.lang(wanted).octets]
    assert all(reply.isascii() or utf8 for reply in replies)
    assert all(reply.startswith((b"+OK ", b"-ERR ")) for reply in replies)


@given(line=st.binary(max_size=MAX_REPLY_OCTETS))
def test_any_reply_can_be_said(line):
    """Whatever stands in a reply, it is still that reply or its translation."""
    said = Speech(Languages(FILES), "sv").said(line)
    assert said == line or b"Okant" in said or b"sprak" in said or b"Inloggning" in said


# --- UTF8


def test_utf8_is_remembered_for_the_session():
    """Only if it was said rightly."""
    authorization = states(speech())[0]
    assert not authorization.speech.utf8
    assert authorization.handle(b"UTF8 please").octets.startswith(b"-ERR ")
    assert not authorization.speech.utf8
    assert authorization.handle(b"UTF8") == Reply(b"+OK UTF-8 mode\r\n")
    assert authorization.speech.utf8


def test_utf8_after_the_login_is_humoured_and_changes_nothing():
    """Outlook says it there, as Courier knows: +OK, and no octet outside ASCII."""
    transaction = states(speech())[1]
    assert transaction.handle(b"UTF8").octets.startswith(b"+OK ")
    assert not transaction.speech.utf8
    assert transaction.handle(b"LANG sv").octets.isascii()


# --- Messages whose header is not ASCII


def test_such_a_message_is_refused_where_that_is_wanted():
    """§5: [UTF8] to LIST n, RETR and TOP of it, and to nothing else."""
    maildrop = FakeMaildrop(MESSAGES)
    transaction = Transaction(maildrop, needs_utf8=lambda index: index == 1)
    for command in (b"LIST 2", b"RETR 2", b"TOP 2 0"):
        assert transaction.handle(command).octets.startswith(b"-ERR [UTF8] ")
    assert transaction.handle(b"LIST 1") == Reply(b"+OK 1 15\r\n")
    assert transaction.handle(b"RETR 1") == SendMessage(0, None)
    assert transaction.handle(b"LIST") == SendListing("LIST")
    assert transaction.handle(b"UIDL 2") == Reply(b"+OK 2 id-2\r\n")
    assert transaction.handle(b"DELE 2").octets.startswith(b"+OK")


def test_only_messages_that_are_there_are_looked_into():
    """A number out of range, or of a message marked as deleted, is answered as ever."""
    transaction = Transaction(FakeMaildrop(MESSAGES), needs_utf8={0: True}.__getitem__)
    assert transaction.handle(b"RETR 3") == Reply(err("No such message"))
    transaction.handle(b"DELE 2")
    assert transaction.handle(b"RETR 2") == Reply(err("That message is marked as deleted"))


def test_a_letter_to_replace_that_is_none_means_nothing():
    """An "ascii:" line with two letters, or none, before its "=" was an error for the whole session."""
    language = Language("xx", b"ascii: ab=c  \xc3\xa9=e\nQuit = \xc3\xa9ab\n")
    assert language.text("Quit", utf8=False) == b"eab"

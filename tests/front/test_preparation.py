"""SASLprep as the front uses it: `gpop.front.preparation`."""

from __future__ import annotations

import stringprep
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpop.front.preparation import prepare
from gpop.pop3.authorization import LOGIN_REFUSED, MAX_NAME_OCTETS, MAX_PASSWORD_OCTETS, Authorization
from gpop.pop3.decisions import Login, RefusedLogin


def login(name: bytes, password: bytes) -> Login | RefusedLogin:
    authorization = Authorization(prepare=prepare)
    authorization.handle(b"USER " + name)
    decision = authorization.handle(b"PASS " + password)
    assert isinstance(decision, Login | RefusedLogin)
    return decision


@pytest.mark.parametrize(
    "sent, prepared",
    [
        ("I\u00adX", "IX"),  # RFC 4013 §3: SOFT HYPHEN mapped to nothing
        ("user", ""),  # no transformation
        ("USER", ""),  # case preserved
        ("\u00aa", "a"),  # output is NFKC
        ("\u2168", "IX"),  # output is NFKC, like the first
        ("jo\u0308rg", "jörg"),  # as a Mac sends it
        ("jörg", ""),
        ("zwei\u00a0Worte", "zwei Worte"),  # a space that is not ASCII
        ("\u200d", ""),  # nothing is left: nobody has an empty name or password
        ("😀🫠", ""),  # younger than Unicode 3.2: allowed in a query (RFC 3454 §7)
        ("\u05d0\u05d1", ""),
        ("\u05d0\u05d1" + "1", ""),  # two directions: no prepared form, but no character that is prohibited
    ],
)
def test_the_form_that_is_tried_after_what_was_sent(sent, prepared):
    """RFC 4013 §3's examples, and what people type."""
    assert prepare(sent.encode()) == prepared.encode()


@pytest.mark.parametrize(
    "character",
    ["\u0007", "\u0080", "\u06dd", "\u200e", "\u2028", "\ue000", "\ufdd0", "\ufffd", "\u2ff0", "\U000e0001"],
)
def test_characters_of_section_2_3_are_refused(character):
    """RFC 6856 §2.2: must be, wherever they stand, in name or password."""
    assert prepare(f"ä{character}b".encode()) is None
    if character != "\u0007":
        refusal = login("ä".encode() + character.encode(), b"pw")
        assert isinstance(refusal, RefusedLogin) and refusal.reason == "prohibited_character"
    refusal = login(b"tim", "ä".encode() + character.encode())
    assert refusal == RefusedLogin(LOGIN_REFUSED, b"tim", "USER", "prohibited_character")


def test_name_and_password_are_handed_out_as_sent_and_prepared():
    """So a password that is stored in either form works."""
    decision = login("jo\u0308rg".encode(), "caf\u00e9\u00a0au lait".encode())
    assert decision == Login("jo\u0308rg".encode(), "café\u00a0au lait".encode(), "USER")
    assert decision.prepared_name == "jörg".encode()
    assert decision.prepared_password == "café au lait".encode()
    assert "au lait" not in repr(decision)


def test_ascii_is_never_prepared():
    """Nothing is looked up for it, nor refused: a tab may be in a password as ever."""
    asked = []
    authorization = Authorization(prepare=asked.append)
    authorization.handle(b"USER tim")
    decision = authorization.handle(b"PASS a\tb")
    assert decision == Login(b"tim", b"a\tb", "USER") and asked == []
    assert (decision.prepared_name, decision.prepared_password) == (b"", b"")
    authorization = Authorization(prepare=prepare)
    authorization.handle("USER jörg".encode())
    assert isinstance(authorization.handle(b"PASS a\tb"), Login)


def test_a_form_that_grows_too_long_is_left_out():
    """One character may become eighteen (U+FDFA): no frame has room for that, and nobody such a name."""
    decision = login("\ufdfa".encode() * 40, b"pw")
    assert isinstance(decision, Login) and decision.prepared_name == b""


@given(text=st.text(min_size=1, max_size=40))
@example(text="\u00ad\u0627")
def test_any_text_has_a_form_or_is_refused(text):
    """No characters raise an exception; a prepared form is that of RFC 4013 §2.1 and §2.2, written slowly."""
    prepared = prepare(text.encode())
    if prepared:
        kept = [each for each in text if not stringprep.in_table_b1(each)]
        mapped = "".join(" " if stringprep.in_table_c12(each) else each for each in kept)
        assert prepared.decode() == unicodedata.normalize("NFKC", mapped) != text


@given(name=st.binary(min_size=1, max_size=12), password=st.binary(min_size=1, max_size=12))
def test_any_octets_are_a_login_in_utf8_or_refused(name, password):
    """What is handed out is well-formed in every form, bounded, and has no control character in the name."""
    decision = login(b"n" + name.replace(b"\n", b""), password.replace(b"\n", b""))
    if isinstance(decision, Login):
        for form in (decision.name, decision.prepared_name):
            assert form.decode() is not None and len(form) <= MAX_NAME_OCTETS
            assert not any(octet < 0x20 or octet == 0x7F for octet in form)
        for form in (decision.password, decision.prepared_password):
            assert (form.isascii() or form.decode()) and len(form) <= MAX_PASSWORD_OCTETS

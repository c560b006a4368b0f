"""
SASLprep (RFC 4013) of names and passwords, through pysasl: the only module that imports it.

In the front and not in auth: Unicode tables at work on what a stranger sent have no business in a process
of root's. pysasl, because it can prepare a query (RFC 3454 §7), as RFC 6856 wants; others (passlib) prepare
what is stored, and would refuse every emoji. Executed by the front, as the service user, for names and
passwords that are not ASCII; it is loaded at the start, since there is nothing to load from in the jail.
"""

from __future__ import annotations

from pysasl.prep import saslprep


def prepare(octets: bytes) -> bytes | None:
    """
    Return the prepared form of a name or password; b"" if that is no other, None if it is to be refused.

    `octets` are well-formed UTF-8. Refused is what holds a character that SASLprep prohibits (RFC 6856 §2.2).
    Text in two directions (Hebrew and a digit behind it) has no prepared form either, but may
    well be somebody's password: it is left as it is. A login is a query, so characters that Unicode 3.2 did
    not know, every emoji of this century, may be in it (RFC 3454 §7).
    """
    if octets.isascii():
        return b""  # as ever: a tab in a password is prohibited, too, and was never refused
    text = octets.decode()
    try:
        prepared = saslprep(text, allow_unassigned=True).encode()
    except ValueError:
        return None if any(map(_is_prohibited, set(text))) else b""
    return b"" if prepared == octets else prepared


def _is_prohibited(character: str) -> bool:
    """Alone a character is in one direction only, so nothing but a prohibition is left to refuse it."""
    try:
        saslprep(character, allow_unassigned=True)
    except ValueError:
        return True
    return False

"""Password hashes, by the system's real crypt(3)."""

from __future__ import annotations

import pytest

from gpop.accounts import hashes
from gpop.accounts.hashes import HashNotUsable, StoredPassword

# "secret", hashed by others: `openssl passwd -6|-5|-1 -salt saltsalt`, and Perl's crypt.
FROM_ELSEWHERE = [
    b"$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1",
    b"$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA",
    b"$1$saltsalt$9xy1btjgzLYfb7hivXtC//",
    b"$y$j9T$abcdefghijklmnopqrstu.$7uryFExhLbAhrpK1WytVzeNObCUVaK3VoKccP3fJEIB",
]


def test_a_new_password_gets_the_best_hash_and_matches() -> None:
    """What `make` writes, `matches` takes, and it takes nothing else."""
    stored = hashes.make(b"se cret\xff")
    assert stored.startswith((b"{CRYPT}$y$", b"{CRYPT}$gy$", b"{CRYPT}$2b$", b"{CRYPT}$6$"))
    assert StoredPassword(stored).matches(b"se cret\xff")
    for wrong in (b"se cret", b"", b"se cret\xff ", b"SE CRET\xff", b"se cret\xff\0"):
        assert not StoredPassword(stored).matches(wrong)


def test_two_hashes_of_one_password_differ() -> None:
    """Each has a salt of its own."""
    assert hashes.make(b"secret") != hashes.make(b"secret")


@pytest.mark.parametrize(
    "setting",
    [
        b"$y$j9T$abcdefghijklmnopqrstu.",
        b"$gy$j9T$abcdefghijklmnopqrstu.",
        b"$7$CU..../....saltsalt",
        b"$6$saltsalt",
        b"$5$saltsalt",
        b"$1$saltsalt",
        b"$2b$05$abcdefghijklmnopqrstuu",
        b"$2y$05$abcdefghijklmnopqrstuu",
        b"ab",
    ],
)
def test_every_hash_of_the_system_is_checked(setting: bytes) -> None:
    """yescrypt, gost-yescrypt, scrypt, SHA-2, MD5, bcrypt and DES, where the system knows them."""
    hashed = hashes._crypt(b"secret", setting)
    if hashed is None:
        pytest.skip(f"crypt(3) of this system does not know {setting!r}")
    assert StoredPassword(hashed).matches(b"secret")
    assert StoredPassword(b"{CRYPT}" + hashed).matches(b"secret")
    assert not StoredPassword(hashed).matches(b"Secret")


@pytest.mark.parametrize(
    "scheme, setting",
    [
        (b"SHA512-CRYPT", b"$6$saltsalt"),
        (b"SHA256-CRYPT", b"$5$saltsalt"),
        (b"MD5-CRYPT", b"$1$saltsalt"),
        (b"BLF-CRYPT", b"$2y$05$abcdefghijklmnopqrstuu"),
        (b"DES-CRYPT", b"ab"),
        (b"sha512-crypt", b"$6$saltsalt"),
    ],
)
def test_dovecots_scheme_names_are_known(scheme: bytes, setting: bytes) -> None:
    """So that a passwd-file can be shared; their case does not matter."""
    hashed = hashes._crypt(b"secret", setting)
    if hashed is None:
        pytest.skip(f"crypt(3) of this system does not know {setting!r}")
    assert StoredPassword(b"{" + scheme + b"}" + hashed).matches(b"secret")


@pytest.mark.parametrize("hashed", FROM_ELSEWHERE)
def test_a_hash_from_elsewhere(hashed: bytes) -> None:
    """What other programs hashed is taken: not only gpop's own."""
    try:
        assert StoredPassword(hashed).matches(b"secret")
    except HashNotUsable as error:
        pytest.skip(str(error))
    assert not StoredPassword(hashed).matches(b"Secret")


@pytest.mark.parametrize("scheme", [b"PLAIN", b"CLEARTEXT", b"plain"])
def test_plain_passwords(scheme: bytes) -> None:
    """For tests and demos: compared as they are, braces and exclamation marks included."""
    assert StoredPassword(b"{" + scheme + b"}!a{b}").matches(b"!a{b}")
    assert not StoredPassword(b"{" + scheme + b"}!a{b}").matches(b"!a{b")


@pytest.mark.parametrize("field", [b"", b"*", b"!", b"!$6$saltsalt$x", b"{CRYPT}", b"{CRYPT}!", b"{PLAIN}"])
def test_no_password_and_a_locked_one_match_nothing(field: bytes) -> None:
    """An empty field is not an empty password."""
    stored = StoredPassword(field)
    assert stored.locked
    for password in (b"", b"!", b"*", b"x"):
        assert not stored.matches(password)


@pytest.mark.parametrize(
    "field, word",
    [
        (b"{ARGON2ID}$argon2id$x", "unknown password scheme"),
        (b"{PLAIN", "'}'"),
        (b"{SHA512-CRYPT}$1$saltsalt$x", "not of its scheme"),
        (b"{}x", "unknown"),
    ],
)
def test_an_unknown_scheme_is_an_error_that_names_it(field: bytes, word: str) -> None:
    """Not a wrong password: nobody could tell."""
    with pytest.raises(HashNotUsable, match=word):
        StoredPassword(field)


def test_a_hash_the_system_does_not_know_is_an_error_without_the_hash() -> None:
    """It goes to the log, the hash does not."""
    with pytest.raises(HashNotUsable) as caught:
        StoredPassword(b"$nosuch$salt$hashhashhash").matches(b"secret")
    assert "$nosuch$" in str(caught.value) and "hashhash" not in str(caught.value)


@pytest.mark.parametrize("password", [b"", b"x" * 512, b"a\0b"])
def test_a_password_that_crypt_would_cut_or_refuse_is_not_made(password: bytes) -> None:
    """Nobody could log in with it."""
    with pytest.raises(HashNotUsable, match="1 to 511"):
        hashes.make(password)


def test_the_longest_password() -> None:
    """511 octets; one more or less is another password."""
    stored = hashes._crypt(b"x" * 511, b"$6$saltsalt")
    assert stored is not None
    assert StoredPassword(stored).matches(b"x" * 511)
    assert not StoredPassword(stored).matches(b"x" * 512)
    assert not StoredPassword(stored).matches(b"x" * 510)


def test_a_repr_shows_no_hash() -> None:
    """Nor a plain password."""
    assert "secret" not in repr(StoredPassword(b"{PLAIN}secret"))

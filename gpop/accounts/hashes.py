"""
EDGE: password hashes, checked and made by the system's crypt(3).

libcrypt is called through ctypes: Python's `crypt` module is gone since 3.13, and nothing
needs a compiler to install. Every hash the system knows works, yescrypt included. Knows no
files and no users; passwords and hashes never appear in its errors.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import functools
import hmac
import secrets

# crypt(3) of libxcrypt refuses longer ones (CRYPT_MAX_PASSPHRASE_SIZE), PAM's conversation too.
MAX_PASSWORD_OCTETS = 511
# struct crypt_data: 32 KiB in libxcrypt, 128 KiB in the old glibc. Both fit.
CRYPT_DATA_OCTETS = 256 * 1024
SALT_OCTETS = 192  # CRYPT_GENSALT_OUTPUT_SIZE
# What new passwords get: the first that the system knows, with its cost (0: the system's default).
# The defaults of yescrypt are meant for log-ins of today; those of the older two are not.
PREFERRED = {b"$y$": 0, b"$gy$": 0, b"$2b$": 11, b"$6$": 100_000}
SALT_ALPHABET = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

# Dovecot's names, and how a hash of that kind begins. () is anything crypt(3) takes; None is no hash.
SCHEMES: dict[bytes, tuple[bytes, ...] | None] = {
    b"CRYPT": (),
    b"SHA512-CRYPT": (b"$6$",),
    b"SHA256-CRYPT": (b"$5$",),
    b"MD5-CRYPT": (b"$1$",),
    b"BLF-CRYPT": (b"$2a$", b"$2b$", b"$2x$", b"$2y$"),
    b"DES-CRYPT": (),
    b"PLAIN": None,
    b"CLEARTEXT": None,
}


class HashNotUsable(Exception):
    """A stored hash that can't be checked here: an unknown scheme, or one this system's crypt(3) lacks."""


class StoredPassword:
    """
    The password field of a passwd-file, taken apart: `{SCHEME}value`, CRYPT where no scheme is named.

    Raises:
        HashNotUsable: the scheme is unknown, or the value is not of that scheme.
    """

    __slots__ = ("_plain", "_value", "locked")

    def __init__(self, field: bytes) -> None:
        scheme, value = b"CRYPT", field
        if field.startswith(b"{"):
            scheme, brace, value = field[1:].partition(b"}")
            if not brace:
                raise HashNotUsable("the password has '{' and no '}'")
        prefixes = SCHEMES.get(scheme.upper(), ())
        if scheme.upper() not in SCHEMES:
            known = ", ".join(name.decode() for name in SCHEMES)
            raise HashNotUsable(f"unknown password scheme {scheme[:32]!r}; known are {known}")
        self._plain = prefixes is None
        self._value = value
        # As in /etc/shadow: no password at all, or one put out of use, never matches anything.
        self.locked = not value or (not self._plain and value[:1] in (b"!", b"*"))
        if prefixes and not self.locked and not value.startswith(prefixes):
            raise HashNotUsable(f"the hash is not of its scheme {scheme.decode('ascii', 'replace')}")

    def matches(self, password: bytes) -> bool:
        """
        Say whether `password` is this one.

        Raises:
            HashNotUsable: the system's crypt(3) does not know this kind of hash.
        """
        if self.locked or not password or len(password) > MAX_PASSWORD_OCTETS or b"\0" in password:
            return False
        if self._plain:
            return hmac.compare_digest(self._value, password)
        hashed = _crypt(password, self._value)
        if hashed is None:
            raise HashNotUsable(f"crypt(3) of this system does not take this hash: {_kind(self._value)}")
        return hmac.compare_digest(hashed, self._value)

    def __repr__(self) -> str:
        return "<StoredPassword>"


def make(password: bytes) -> bytes:
    """
    Return a new hash of `password` as a passwd-file holds it: the best scheme this system has.

    Raises:
        HashNotUsable: the password is empty, too long, has a NUL, or crypt(3) gives no hash.
    """
    if not password or len(password) > MAX_PASSWORD_OCTETS or b"\0" in password:
        raise HashNotUsable(f"a password has 1 to {MAX_PASSWORD_OCTETS} octets and no NUL")
    for prefix in PREFERRED:
        salt = _salt(prefix)
        hashed = _crypt(password, salt) if salt else None
        if hashed is not None and hashed.startswith(prefix):
            return b"{CRYPT}" + hashed
    raise HashNotUsable("crypt(3) of this system has no strong hash")


def burn(password: bytes) -> None:
    """
    Spend what a check costs, for a name that has no hash to check.

    The fixed time of refusals hides how long a check took from one client; this hides it from
    one who watches how fast other logins are answered meanwhile.
    """
    _crypt(password[:MAX_PASSWORD_OCTETS].replace(b"\0", b" "), _burn_salt())


def warm() -> None:
    """Load libcrypt now and touch all of it, so that no checker has to."""
    with contextlib.suppress(HashNotUsable):
        burn(b"")


@functools.cache
def _burn_salt() -> bytes:
    return next(filter(None, map(_salt, PREFERRED)), b"")


@functools.cache
def _libcrypt() -> ctypes.CDLL:
    """
    Return the library that has crypt(3).

    Raises:
        HashNotUsable: none has.
    """
    # The usual names first: find_library starts other programs. musl has crypt in libc itself.
    for name in ("libcrypt.so.1", "libcrypt.so.2", None):
        try:
            library = ctypes.CDLL(name or ctypes.util.find_library("crypt"), use_errno=True)
        except OSError:
            continue
        if hasattr(library, "crypt_r"):
            return library
    raise HashNotUsable("this system has no libcrypt")


def _crypt(password: bytes, setting: bytes) -> bytes | None:
    """Return crypt(3) of both, None if it does not take the setting or has no memory for it."""
    library = _libcrypt()
    data = ctypes.create_string_buffer(CRYPT_DATA_OCTETS)
    call = library.crypt_r
    call.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
    call.restype = ctypes.c_char_p
    hashed: bytes | None = call(password, setting, data)
    if hashed is None and ctypes.get_errno() == errno.ENOMEM:
        raise HashNotUsable("no memory for crypt(3)")
    # "*0" and "*1" are failure tokens of crypt(3); no real hash begins so.
    result = None if hashed is None or hashed.startswith(b"*") else bytes(hashed)
    ctypes.memset(data, 0, CRYPT_DATA_OCTETS)  # it held the password
    return result


def _salt(prefix: bytes) -> bytes | None:
    """Return a fresh setting for crypt(3), None if the system can't make one of that kind."""
    library = _libcrypt()
    if hasattr(library, "crypt_gensalt_rn"):
        call = library.crypt_gensalt_rn
        call.argtypes = [
            ctypes.c_char_p,
            ctypes.c_ulong,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_int,
        ]
        call.restype = ctypes.c_char_p
        # No octets of ours (NULL, 0): libxcrypt then takes the salt from the kernel.
        output = ctypes.create_string_buffer(SALT_OCTETS)
        salt: bytes | None = call(prefix, PREFERRED[prefix], None, 0, output, SALT_OCTETS)
        return salt
    if prefix == b"$6$":
        salt_characters = bytes(secrets.choice(SALT_ALPHABET) for _ in range(16))
        return prefix + b"rounds=%d$" % PREFERRED[prefix] + salt_characters
    return None


def _kind(value: bytes) -> str:
    """Return how a hash begins, without anything of the hash itself."""
    if value[:1] != b"$":
        return "the traditional one (DES)"
    return "$" + value[1:].partition(b"$")[0][:8].decode("ascii", "backslashreplace") + "$"

"""
PURE: how Postfix reads a virtual alias map: which keys it asks for a name, what a value means.

Names are in the form a mail user writes (`a b@example.org`), keys and values in the form of
a mail header (`"a b"@example.org`), as in virtual(5). It knows no file.
"""

from __future__ import annotations

from collections.abc import Callable

from gpop.accounts.names import split

NO_EXTENSION = frozenset((b"mailer-daemon", b"double-bounce"))
# RFC 5322: what an unquoted local part is made of, beside dots and octets outside ASCII.
ATOM_OCTETS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-/=?^_`{|}~")


def folded(key: bytes) -> bytes:
    """Return a key as postmap writes it: without the difference of case."""
    try:
        return key.decode("utf-8").casefold().encode("utf-8")
    except UnicodeDecodeError:
        return key.lower()


def patterns(name: bytes, delimiters: bytes, is_local: Callable[[bytes], bool]) -> list[tuple[bytes, bytes]]:
    """
    Return the keys to ask for `name`, in their order, each with the extension that it leaves out.

    `delimiters` begin an extension (Postfix's recipient_delimiter), b"" for none. `is_local` says
    whether a domain's users may stand in the map without it.
    """
    local, at, domain = name.rpartition(b"@")
    if not at:
        # Postfix gives every address a domain; this is for logins that have none, by default.
        return [] if b"." in name else _with_and_without(name, b"", delimiters)
    found = _with_and_without(local, b"@" + domain, delimiters)
    if is_local(domain):
        found += _with_and_without(local, b"", delimiters)
    return [*found, (folded(b"@" + domain), b"")]


def _with_and_without(local: bytes, domain: bytes, delimiters: bytes) -> list[tuple[bytes, bytes]]:
    user, extension = split_extension(local, delimiters)
    found = [(folded(quoted(local) + domain), b"")]
    if extension:
        found.append((folded(quoted(user) + domain), extension))
    return found


def split_extension(local: bytes, delimiters: bytes) -> tuple[bytes, bytes]:
    """Return (user, extension with its delimiter) of a local part; b"" if it has none."""
    if local.lower() in NO_EXTENSION:
        return local, b""
    if b"-" in delimiters and (local.lower().startswith(b"owner-") or local.lower().endswith(b"-request")):
        return local, b""  # mailing lists are called so
    place = next((place for place, octet in enumerate(local) if octet in delimiters), 0)
    return (local[:place], local[place:]) if place else (local, b"")


def results(value: bytes, name: bytes, extension: bytes, propagate: bool) -> list[bytes]:
    """
    Return the names that `value` means for `name`, which was found without `extension`.

    `@other` is the same user there; `propagate` puts the extension behind each of them.
    """
    if value.startswith(b"@"):
        value = quoted(split(name)[0].removesuffix(extension)) + value
    found = []
    for written in split_list(value):
        local, domain = split(written)
        kept = unquoted(local) + (extension if propagate else b"")
        found.append(kept + b"@" + domain if domain else kept)
    return found


def split_list(value: bytes) -> list[bytes]:
    """Return the addresses of a list, which blanks or commas part; inside quotes they part nothing."""
    found = [bytearray()]
    in_quotes = escaped = False
    for octet in value:
        if not in_quotes and octet in b", \t\r\n":
            found.append(bytearray())
            continue
        in_quotes ^= octet == ord('"') and not escaped
        escaped = octet == ord("\\") and not escaped
        found[-1].append(octet)
    return [bytes(each) for each in found if each]


def quoted(local: bytes) -> bytes:
    """Return a local part as it stands in a header: in quotes, if it needs them."""
    plain = all(octet in ATOM_OCTETS or octet > 0x7F for octet in local.replace(b".", b""))
    if plain and local and b"" not in local.split(b"."):
        return local
    return b'"' + local.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def unquoted(local: bytes) -> bytes:
    """Undo `quoted`."""
    if len(local) < 2 or not local.startswith(b'"') or not local.endswith(b'"'):
        return local
    plain = bytearray()
    octets = iter(local[1:-1])
    for octet in octets:
        plain.append(next(octets, octet) if octet == ord("\\") else octet)
    return bytes(plain)

"""
PURE: how sendmail reads a virtusertable: which keys it asks for a name, what a value means.

The order is that of sendmail's rule set for recipients. Where a login differs from an
address (a name without a domain), docs/virtual-users.md says what is done. It knows no file.
"""

from __future__ import annotations

from collections.abc import Iterator

ERROR = b"error:"
DIGITS = b"0123456789"


def patterns(name: bytes) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
    """
    Return the keys to ask for `name`, in their order, each with what %0, %1, %2 ... stand for.

    Keys are in lower case, as makemap writes them; what the % stand for is as it was given.
    """
    local, at, domain = name.rpartition(b"@")
    if not at:
        # sendmail has a domain for every address; a table for logins may name a user alone.
        yield _pattern(name, name)
        return
    yield _pattern(name, local)
    # The first "+" that has something before it.
    plus = local.find(b"+", 1)
    if plus < 0:
        yield _pattern(b"@" + domain, local)
        return
    user, detail = local[:plus], local[plus + 1 :]
    arguments = user, detail, b"+" + detail
    if detail:
        yield _pattern(user + b"++@" + domain, *arguments)
    yield _pattern(user + b"+*@" + domain, *arguments)
    yield _pattern(user + b"@" + domain, *arguments)
    if detail:
        yield _pattern(b"++@" + domain, *arguments)
    yield _pattern(b"+*@" + domain, *arguments)
    yield _pattern(b"@" + domain, *arguments)


def _pattern(key: bytes, *arguments: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    key = key.lower()
    return key, (key, *arguments)


def rewrite(value: bytes, arguments: tuple[bytes, ...]) -> bytes:
    """Return `value` with %0 to %9 replaced; %% is one %, and of what is not there nothing is left."""
    first, *rest = value.split(b"%")
    if not rest:
        return value
    result = [first]
    pieces = iter(rest)
    for piece in pieces:
        if piece[:1] and piece[:1] in DIGITS:
            number = piece[0] - DIGITS[0]
            result += [arguments[number] if number < len(arguments) else b"", piece[1:]]
        elif not piece:
            # "%%", or the last octet of the value: either way one %.
            result += [b"%", next(pieces, b"")]
        else:
            result += [b"%", piece]
    return b"".join(result)


def rejection(value: bytes) -> bytes | None:
    """Return the text of an `error:` value, None of any other one."""
    if not value.lower().startswith(ERROR):
        return None
    text = value[len(ERROR) :].strip()
    code, colon, rest = text.partition(b":")
    if colon and _is_status(code):
        return rest.strip() or text  # error:5.1.1:550 text
    return text.partition(b" ")[2].strip() or text  # error:nouser text


def _is_status(code: bytes) -> bool:
    """Whether this is an enhanced status code (RFC 3463), such as 5.1.1."""
    parts = code.split(b".")
    return len(parts) == 3 and all(part.isdigit() for part in parts)

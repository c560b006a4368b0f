"""
The rules of `gpop.pop3` once more, slow and obvious: one line, one octet at a time.

Two writings of one rule find what twenty examples miss, so nothing here may be clever or borrowed from gpop.
"""

from __future__ import annotations


def lines_of(message: bytes) -> list[bytes]:
    """The lines of a message without their line ends; an unfinished last one counts as a line."""
    lines = []
    line = bytearray()
    for octet in message:
        if octet == 0x0A:
            if line[-1:] == b"\r":
                del line[-1]
            lines.append(bytes(line))
            line = bytearray()
        else:
            line.append(octet)
    if line:
        lines.append(bytes(line))
    return lines


def wire(lines: list[bytes]) -> bytes:
    """What follows the status line of RETR or TOP, terminator included."""
    octets = bytearray()
    for line in lines:
        if line[:1] == b".":
            octets += b"."
        octets += line + b"\r\n"
    return bytes(octets + b".\r\n")


def encode(message: bytes) -> bytes:
    return wire(lines_of(message))


def octets_on_wire(message: bytes) -> int:
    return sum(len(line) + 2 for line in lines_of(message))


def is_plain_lf(message: bytes) -> bool:
    return (
        0x0D not in message
        and not any(line.startswith(b".") for line in lines_of(message))
        and message[-1:] in (b"\n", b"")
    )


def is_wire(message: bytes) -> bool:
    """Whether it needs no change at all on its way out; an empty message is called plain instead."""
    return (
        message != b""
        and encode(message) == message + b".\r\n"
        and not any(b"\r" in line for line in lines_of(message))
    )


def top(message: bytes, line_count: int) -> bytes:
    lines = lines_of(message)
    if b"" not in lines:
        return wire(lines)
    body_start = lines.index(b"") + 1
    return wire(lines[: body_start + line_count])


def decode(received: bytes) -> bytes:
    """An independent client: undo byte-stuffing up to the terminator, which must be the end."""
    message = bytearray()
    lines = received.split(b"\r\n")
    assert lines[-2:] == [b".", b""]
    for line in lines[:-2]:
        if line.startswith(b"."):
            assert line.startswith(b"..")
            line = line[1:]
        message += line + b"\r\n"
    return bytes(message)


def read_lines(octets: bytes, sasl_response: bool = False) -> list[bytes | str]:
    """What a line reader returns for `octets`: lines, and "TOO_LONG" or "HAS_NUL" in place of bad ones."""
    results: list[bytes | str] = []
    *whole, unfinished = octets.split(b"\n")
    for line in whole:
        if len(line) + 1 > limit(line, sasl_response):
            results.append("TOO_LONG")
        elif b"\0" in line:
            results.append("HAS_NUL")
        else:
            results.append(line[:-1] if line.endswith(b"\r") else line)
    if len(unfinished) + 1 > limit(unfinished, sasl_response):
        results.append("TOO_LONG")
    return results


def limit(line: bytes, sasl_response: bool) -> int:
    return 16384 if sasl_response or line.upper().startswith((b"AUTH ", b"XCLIENT ")) else 255

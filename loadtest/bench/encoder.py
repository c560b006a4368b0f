"""
Micro-benchmark of the message encoder: MB/s per kind of text, for it and for what it was chosen over.

Run from the top of the tree: `python -m loadtest.bench.encoder [--json]`. Every way of writing it is checked
against the others before it is timed. Figures are the best of several rounds, in octets of the file.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

from gpop.pop3.encoding import LINE_START, Measure, encode, encode_plain, measure

CHUNK_OCTETS = 64 * 1024
TEXT_OCTETS = 4 * 1024 * 1024
ROUNDS = 5

_LINE = b"A line of ordinary text, as long as the lines of mail mostly are, no more.\n"


def texts() -> dict[str, bytes]:
    """The kinds of text; each is whole lines, so that every chunk can be encoded on its own."""
    patterns = {
        "plain LF": _LINE,
        "CRLF": _LINE.replace(b"\n", b"\r\n"),
        "a dot line in 20": _LINE * 19 + b"." + _LINE,
        "only dot lines": b"." + _LINE,
        "CRLF with dot lines": (_LINE * 19 + b"." + _LINE).replace(b"\n", b"\r\n"),
        "short lines": b"a\n",
        "short lines, CRLF": b"a\r\n",
        "lone CR in every line": _LINE.replace(b",", b"\r"),
        "one CRLF line in 500": _LINE * 499 + _LINE.replace(b"\n", b"\r\n"),
        "base64": b"QUJD" * 19 + b"\n",
    }
    return {name: pattern * (TEXT_OCTETS // len(pattern)) for name, pattern in patterns.items()}


def by_line(chunk: bytes) -> bytes:
    """The simple loop."""
    lines = chunk.split(b"\n")
    last = lines.pop()
    encoded = []
    for line in lines:
        line = line.removesuffix(b"\r")
        encoded.append((b"." + line if line.startswith(b".") else line) + b"\r\n")
    if last:
        encoded.append(b"." + last if last.startswith(b".") else last)
    return b"".join(encoded)


def by_join(chunk: bytes) -> bytes:
    """Split and join in C, one object per line."""
    lines = chunk.replace(b"\r\n", b"\n").split(b"\n")
    return b"\r\n".join([b"." + line if line.startswith(b".") else line for line in lines])


def by_replace(chunk: bytes) -> bytes:
    """Three replaces, unconditionally but for the CR."""
    if b"\r" in chunk:
        chunk = chunk.replace(b"\r\n", b"\n")
    chunk = chunk.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")
    return b"." + chunk if chunk.startswith(b".") else chunk


def by_count(chunk: bytes) -> bytes:
    """Three replaces; counting tells whether text is CRLF already."""
    if b"\r" not in chunk:
        chunk = chunk.replace(b"\n", b"\r\n")
    elif chunk.count(b"\r\n") != chunk.count(b"\n"):
        chunk = chunk.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    if b"\n." in chunk:
        chunk = chunk.replace(b"\n.", b"\n..")
    return b"." + chunk if chunk.startswith(b".") else chunk


def gpop_encode(chunk: bytes) -> bytes:
    return encode(chunk, LINE_START)[0]


def gpop_measure_in_chunks(chunk: bytes) -> tuple[int, int]:
    meter = Measure()
    meter.feed(chunk)
    return meter.result()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "by_line": by_line,
    "by_join": by_join,
    "by_replace": by_replace,
    "by_count": by_count,
    "encode": gpop_encode,
}
OTHERS: dict[str, Callable[[bytes], object]] = {
    "encode_plain": encode_plain,
    "measure": measure,
    "Measure": gpop_measure_in_chunks,
}


def whole_line_chunks(text: bytes) -> list[bytes]:
    chunks, start = [], 0
    while start < len(text):
        end = text.rfind(b"\n", start, start + CHUNK_OCTETS) + 1
        chunks.append(text[start:end])
        start = end
    return chunks


def megabytes_per_second(function: Callable[[bytes], object], chunks: list[bytes]) -> float:
    best_s = min(_seconds(function, chunks) for _ in range(ROUNDS))
    return sum(map(len, chunks)) / best_s / 1e6


def _seconds(function: Callable[[bytes], object], chunks: list[bytes]) -> float:
    start_s = time.perf_counter()
    for chunk in chunks:
        function(chunk)
    return time.perf_counter() - start_s


def run() -> dict[str, dict[str, float]]:
    """Figures by kind of text and by function."""
    figures = {}
    for name, text in texts().items():
        chunks = whole_line_chunks(text)
        for encoder in ENCODERS.values():
            assert encoder(chunks[0]) == by_line(chunks[0]), (name, encoder)
        functions = ENCODERS | OTHERS
        figures[name] = {label: megabytes_per_second(each, chunks) for label, each in functions.items()}
    return figures


def small_message_us(size_octets: int) -> float:
    """Microseconds to measure one whole message in memory, as a rebuild of the statcache does for each."""
    message = _LINE * (size_octets // len(_LINE))
    return min(_seconds(measure, [message] * 1000) for _ in range(ROUNDS)) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="Micro-benchmark of the message encoder.")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    arguments = parser.parse_args()
    figures = run()
    small = {f"{kib} KiB": small_message_us(kib * 1024) for kib in (1, 4, 16)}
    if arguments.json:
        result = {"python": platform.python_version(), "MB/s": figures, "measure_us": small}
        print(json.dumps(result, indent=2))
        return
    labels = list(ENCODERS | OTHERS)
    print(f"{'MB/s, Python ' + platform.python_version():24}" + "".join(f"{label:>13}" for label in labels))
    for name, row in figures.items():
        print(f"{name:24}" + "".join(f"{row[label]:13.0f}" for label in labels))
    print("measure, one message: " + ", ".join(f"{size} {us:.1f} µs" for size, us in small.items()))


if __name__ == "__main__":
    main()

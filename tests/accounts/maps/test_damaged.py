"""
Damaged map files: any octets at all lead to a value, to none or to MapError, soon and in bounded memory.

Wrong octets within a key or value are another key or value: no format here has checksums.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpop.accounts.maps import apart, berkeleydb, grammar, lmdbfile
from gpop.accounts.maps.compiled import CompiledMap
from gpop.accounts.maps.errors import MapError
from gpop.accounts.maps.mapname import MapName
from gpop.accounts.maps.virtualusers import open_map

CORPUS = Path(__file__).parent / "corpus"
BERKELEY = sorted(CORPUS.glob("*.db"))
ENTRIES = {b"user%d@x.example" % number: b"account%d" % number for number in range(60)}
ENTRIES |= {b"k" * 400: b"long-key", b"long-value": b"v" * 1500}
KEYS = [b"user0@x.example", b"user59@x.example", b"k" * 400, b"long-value", b"nobody@x.example", b""]

Places = list[tuple[int, int]]
Damage = tuple[list[tuple[float, int]], float]

# Some octets replaced, and where the file is cut off (as parts of its length; 1: nowhere).
DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)
PLACES_THAT_MATTER = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6)


def cdb(values: dict[bytes, bytes]) -> bytes:
    """A CDB file, as the format's text says."""
    records = b""
    tables: list[list[tuple[int, int]]] = [[] for _ in range(256)]
    for key, value in values.items():
        number = 5381
        for octet in key:
            number = ((number << 5) + number & 0xFFFFFFFF) ^ octet
        tables[number & 255].append((number, 2048 + len(records)))
        records += struct.pack("<II", len(key), len(value)) + key + value
    head, place = b"", 2048 + len(records)
    for table in tables:
        slots = [(0, 0)] * (2 * len(table))
        for number, record in table:
            at = (number >> 8) % len(slots)
            while slots[at][1]:
                at = (at + 1) % len(slots)
            slots[at] = (number, record)
        head += struct.pack("<II", place, len(slots))
        records += b"".join(struct.pack("<II", *slot) for slot in slots)
        place += 8 * len(slots)
    return head + records


def damaged(octets: bytes, damage: Damage) -> bytes:
    changed = bytearray(octets[: int(len(octets) * damage[1])])
    for part, octet in damage[0]:
        if changed:
            changed[int(part * len(changed))] = octet
    return bytes(changed)


def ask(path: Path, kind: str) -> list[bytes | str | None]:
    """What each key gets: a value, None, or the error's words."""
    answers: list[bytes | str | None] = []
    for key in KEYS:
        each = open_map(f"{kind}:{path}", grammar.POSTFIX)
        if kind == "text":
            each.refresh()
        try:
            value = each.get(key)
            assert value is None or len(value) <= berkeleydb.MAX_VALUE_OCTETS
            answers.append(value)
        except MapError as error:
            assert str(error).startswith(f"{kind}:{path}: ")
            answers.append(str(error))
        finally:
            if isinstance(each, CompiledMap):
                each.close()
    return answers


@pytest.mark.parametrize("base", BERKELEY, ids=lambda path: path.stem)
def test_the_corpus_is_read(base: Path) -> None:
    """Undamaged: every entry, and what is not there is not."""
    each = CompiledMap(MapName(f"{base.stem.partition('-')[0]}:{base}"))
    for key, value in ENTRIES.items():
        assert each.get(key) == value
        assert each.get(key + b"x") is None
    each.close()


def test_a_cdb_file_is_read(tmp_path: Path) -> None:
    """Written here, from the description of the format."""
    (tmp_path / "x.cdb").write_bytes(cdb(ENTRIES))
    each = CompiledMap(MapName(f"cdb:{tmp_path}/x"))
    assert {key: each.get(key) for key in ENTRIES} == ENTRIES
    assert each.get(b"nobody@x.example") is None
    each.close()


@pytest.mark.parametrize("base", BERKELEY, ids=lambda path: path.stem)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE, places=st.one_of(st.just([]), PLACES_THAT_MATTER))
def test_damaged_berkeley_db(base: Path, tmp_path: Path, damage: Damage, places: Places) -> None:
    """Octets anywhere, or in the first pages, where the structure is."""
    octets = bytearray(damaged(base.read_bytes(), damage))
    for place, octet in places:
        if place < len(octets):
            octets[place] = octet
    (tmp_path / "x.db").write_bytes(octets)
    ask(tmp_path / "x", base.stem.partition("-")[0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE)
def test_damaged_cdb(tmp_path: Path, damage: Damage) -> None:
    """Hash tables without an empty slot, records behind the end."""
    (tmp_path / "x.cdb").write_bytes(damaged(cdb(ENTRIES), damage))
    ask(tmp_path / "x", "cdb")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(octets=st.one_of(st.binary(max_size=300), st.text('ab@#" \t\n,\\', max_size=80).map(str.encode)))
def test_any_text(tmp_path: Path, octets: bytes) -> None:
    """Any octets are a text with some entries; lines that are none are named with their numbers."""
    (tmp_path / "x").write_bytes(octets)
    ask(tmp_path / "x", "text")
    for text_grammar in grammar.GRAMMARS:
        entries = grammar.parse(octets, text_grammar)
        assert entries.problem_count + len(entries.values) <= octets.count(b"\n") + 1
        assert all(0 < line <= octets.count(b"\n") + 1 for line, _ in entries.problems)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE, places=st.one_of(st.just([]), PLACES_THAT_MATTER))
def test_damaged_lmdb(tmp_path: Path, damage: Damage, places: Places) -> None:
    """LMDB may be ended by a signal then; whoever asks is not, and hears an error."""
    base = tmp_path / "base.lmdb"
    if not base.exists():
        lmdbfile.write(str(base), {key: value for key, value in ENTRIES.items() if len(key) < 400})
    octets = bytearray(damaged(base.read_bytes(), damage))
    for place, octet in places:
        if place < len(octets):
            octets[place + 8192 if place + 8192 < len(octets) else place] = octet
    (tmp_path / "x.lmdb").write_bytes(octets)
    try:
        answers = apart.run_apart(lambda: ask(tmp_path / "x", "lmdb"))
    except MapError as error:
        assert "damaged" in str(error)
    else:
        assert len(answers) == len(KEYS)


def test_a_truncated_lmdb_file_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """The commonest damage is found before LMDB looks at it: wherever it was cut."""
    lmdbfile.write(str(tmp_path / "x.lmdb"), ENTRIES)
    octets = (tmp_path / "x.lmdb").read_bytes()
    for length in (0, 1, 100, 4096, 8192, 8193, len(octets) - 4096, len(octets) - 1):
        (tmp_path / "x.lmdb").write_bytes(octets[:length])
        assert all("damaged" in str(answer) for answer in ask(tmp_path / "x", "lmdb")[:-1]), length


def crash() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGBUS)


def hang() -> None:
    signal.pause()


@pytest.mark.parametrize("what, words", [(crash, "SIGBUS"), (hang, "no answer within 1 s")])
def test_what_is_done_apart_ends_nobody_else(
    what: Callable[[], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash and a hang are errors that say so."""
    monkeypatch.setattr(apart, "MAX_SECONDS", 1)
    with pytest.raises(MapError, match=words):
        apart.run_apart(what)
    assert apart.run_apart(lambda: 17) == 17


@pytest.mark.parametrize("kind", ["hash", "btree", "lmdb", "cdb", "text"])
def test_what_is_no_file_is_an_error(tmp_path: Path, kind: str) -> None:
    """Missing, a directory, a FIFO that nobody writes to; and nothing waits for it."""
    path = Path(MapName(f"{kind}:{tmp_path}/x").file)
    assert "No such file" in str(ask(tmp_path / "x", kind)[0])
    path.mkdir()
    assert isinstance(ask(tmp_path / "x", kind)[0], str)
    path.rmdir()
    os.mkfifo(path)
    assert "not a regular file" in str(ask(tmp_path / "x", kind)[0])
    path.unlink()
    path.write_bytes(b"")
    if kind != "text":
        assert "damaged" in str(ask(tmp_path / "x", kind)[0])

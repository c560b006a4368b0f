"""Maps written by the real postmap, makemap and Berkeley DB: gpop finds in them what these find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpop.accounts.maps import grammar
from gpop.accounts.maps.compiled import CompiledMap
from gpop.accounts.maps.errors import MapError
from gpop.accounts.maps.mapname import MapName
from tests.accounts.maps.map_tools import MapTools, needs_map_tools

pytestmark = needs_map_tools

KINDS = ["hash", "btree", "lmdb", "cdb"]
SMALL = b"""\
Joe@Example.org  joe

# a comment
@example.com jim@example.org
list@example.org a@x.example,
\tb@x.example
"""
MANY = 5_000


def opened(name: str) -> CompiledMap:
    return CompiledMap(MapName(name))


def entry(number: int) -> tuple[bytes, bytes]:
    return b"user%d@domain%d.example" % (number, number % 97), b"account%d" % number


@pytest.mark.parametrize("kind", KINDS)
def test_what_postmap_writes(map_tools: MapTools, kind: str) -> None:
    """Hits, misses, folded keys, values of several lines: as `postmap -q` says."""
    name = map_tools.postmap(kind, SMALL)
    each = opened(name)
    for key in ("joe@example.org", "@example.com", "list@example.org", "nobody@example.org", "@"):
        assert each.get(key.encode()) == map_tools.postmap_query(name, key), key
    assert each.get(b"joe@example.org") == b"joe"
    assert each.get(b"") is None
    each.close()


@pytest.mark.parametrize("options", [(), ("-N",), ("-f",)], ids=str)
@pytest.mark.parametrize("kind", ["hash", "btree"])
def test_what_makemap_writes(map_tools: MapTools, kind: str, options: tuple[str, ...]) -> None:
    """With and without the NUL (-N), with keys as they are (-f)."""
    text = b"Joe@Example.org\tjoe\n@example.com\t%1@example.org\nlong@example.org\t" + b"x" * 900 + b"\n"
    each = opened(map_tools.makemap(kind, text, *options))
    key = b"Joe@Example.org" if options == ("-f",) else b"joe@example.org"
    assert each.get(key) == b"joe"
    assert each.get(b"@example.com") == b"%1@example.org"
    assert each.get(b"long@example.org") == b"x" * 900
    assert each.get(b"nobody@example.org") is None
    each.close()


@pytest.mark.parametrize("kind", [*KINDS, "makemap-hash", "makemap-btree"])
def test_every_entry_of_many_is_found(map_tools: MapTools, kind: str) -> None:
    """Buckets that were split, trees of several levels; and nothing that is not there."""
    text = b"".join(b"%b %b\n" % entry(number) for number in range(MANY))
    if kind.startswith("makemap-"):
        name = map_tools.makemap(kind.removeprefix("makemap-"), text)
    else:
        name = map_tools.postmap(kind, text, path=map_tools.folder / f"many-{kind}")
    each = opened(name)
    for number in range(MANY):
        key, value = entry(number)
        assert each.get(key) == value
    for number in range(MANY, MANY + 500):
        assert each.get(entry(number)[0]) is None
    each.close()


@pytest.mark.parametrize("kind", ["hash", "btree", "cdb"])
def test_long_keys_and_values(map_tools: MapTools, kind: str) -> None:
    """What is longer than a page lies on pages of its own."""
    long_key = b"k" * 3000 + b"@example.org"
    long_value = b", ".join(b"user%d@example.net" % number for number in range(1500))
    text = b"list@example.org %b\n%b found\n" % (long_value, long_key) + SMALL
    text += b"".join(b"%b%d@example.org value%d\n" % (b"l" * 1500, number, number) for number in range(50))
    each = opened(map_tools.postmap(kind, text, path=map_tools.folder / f"long-{kind}"))
    assert each.get(b"list@example.org") == long_value
    assert each.get(long_key) == b"found"
    assert each.get(b"x" * 3000) is None
    for number in range(50):
        assert each.get(b"%b%d@example.org" % (b"l" * 1500, number)) == b"value%d" % number
    each.close()


@pytest.mark.parametrize("page_octets", [512, 4096, 65536])
@pytest.mark.parametrize("order", [1234, 4321])
@pytest.mark.parametrize("kind", ["hash", "btree"])
def test_both_byte_orders_and_all_page_sizes(
    map_tools: MapTools, kind: str, order: int, page_octets: int
) -> None:
    """A file is as the machine that wrote it; also with long items."""
    text = b"".join(b"%b\n%b\n" % entry(number) for number in range(1000))
    text += b"%b\nlong-key\nlong-value\n%b\n" % (b"k" * 1000, b"v" * 5000)
    path = map_tools.folder / f"{kind}-{order}-{page_octets}"
    path.with_suffix(".db").unlink(missing_ok=True)
    each = opened(
        map_tools.db_load(kind, text, f"db_lorder={order}", f"db_pagesize={page_octets}", path=path)
    )
    for number in range(1000):
        key, value = entry(number)
        assert each.get(key) == value
        assert each.get(b"no" + key) is None
    assert each.get(b"k" * 1000) == b"long-key"
    assert each.get(b"long-value") == b"v" * 5000
    each.close()


@pytest.mark.parametrize("kind", ["hash", "btree"])
def test_of_duplicates_the_first_holds(map_tools: MapTools, kind: str) -> None:
    """makemap -d; and where one key has so many that they fill pages, that is said."""
    text = b"joe\tfirst\nann\tann\njoe\tsecond\njoe\tthird\n"
    each = opened(map_tools.makemap(kind, text, "-d", path=map_tools.folder / f"twice-{kind}"))
    assert (each.get(b"joe"), each.get(b"ann")) == (b"first", b"ann")
    each.close()
    text = b"".join(b"joe\tvalue%d\n" % number for number in range(2000))
    each = opened(map_tools.makemap(kind, text, "-d", path=map_tools.folder / f"often-{kind}"))
    with pytest.raises(MapError, match="so many values"):
        each.get(b"joe")
    each.close()


@pytest.mark.parametrize("kind", ["hash", "btree"])
def test_what_is_not_read_is_said(map_tools: MapTools, kind: str) -> None:
    """A file of the other type, checksums, several databases in one file."""
    name = map_tools.makemap(kind, b"joe\tjoe\n", path=map_tools.folder / f"kind-{kind}")
    other = {"hash": "btree", "btree": "hash"}[kind]
    with pytest.raises(MapError, match=f"a file of type {kind}, not {other}"):
        opened(name.replace(f"{kind}:", f"{other}:")).get(b"joe")
    path = map_tools.folder / f"sums-{kind}"
    name = map_tools.db_load(kind, b"joe\njoe\n", "chksum=1", path=path)
    with pytest.raises(MapError, match="checksums"):
        opened(name).get(b"joe")
    path = map_tools.folder / f"several-{kind}"
    name = map_tools.db_load(kind, b"joe\njoe\n", "database=one", path=path)
    with pytest.raises(MapError, match=r"several databases|a file of type btree"):
        opened(name).get(b"joe")


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_that_was_replaced_or_written_again_is_seen(own_map_tools: MapTools, kind: str) -> None:
    """By the next login, which opens it anew."""
    each = opened(own_map_tools.postmap(kind, b"joe@x.example one\n"))
    assert each.get(b"joe@x.example") == b"one"
    each.close()
    other = own_map_tools.folder / "other"
    new = MapName(own_map_tools.postmap(kind, b"joe@x.example two\n", path=other))
    os.rename(new.file, each.map_name.file)
    assert each.get(b"joe@x.example") == b"two"
    each.close()
    # postmap -i writes into the file that is there (CDB has no such thing).
    if kind != "cdb":
        folder = str(own_map_tools.folder)
        program = "usr/sbin/postmap"
        own_map_tools.run(program, "-c", folder, "-r", "-i", each.name, stdin=b"joe@x.example three\n")
        assert each.get(b"joe@x.example") == b"three"
        each.close()


@pytest.mark.parametrize("kind", ["hash", "btree", "lmdb"])
def test_nobody_reads_what_is_being_written(own_map_tools: MapTools, kind: str) -> None:
    """While postmap has its lock on a file, a look-up waits; and if it lasts too long, that is an error."""
    name = own_map_tools.postmap(kind, SMALL)
    each = opened(name)
    lock = "lockf" if kind == "lmdb" else "flock"
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+b'); "
        f"fcntl.{lock}(file, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, each.map_name.file]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout and writer.stdout.readline() == b"\n"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gpop.accounts.maps.octets.LOCK_WAIT_S", 0.05)
            with pytest.raises(MapError, match="locked by another program"):
                each.get(b"joe@example.org")
    assert each.get(b"joe@example.org") == b"joe"
    each.close()


def test_what_gpop_builds_postfix_reads(own_map_tools: MapTools) -> None:
    """`gpop virtusers build`, then `postmap -q` and -s; Postfix can also add to it."""
    path = own_map_tools.folder / "virtual"
    path.write_bytes(SMALL + b"".join(b"%b %b\n" % entry(number) for number in range(MANY)))
    gpop = [sys.executable, "-m", "gpop", "virtusers", "build"]
    done = subprocess.run([*gpop, str(path)], capture_output=True, check=True, text=True)
    assert done.stdout == f"{path}.lmdb: {MANY + 3} entries\n"
    name = f"lmdb:{path}"
    assert own_map_tools.postmap_query(name, "joe@example.org") == b"joe"
    folder = str(own_map_tools.folder)
    listed = own_map_tools.run("usr/sbin/postmap", "-c", folder, "-s", name).splitlines()
    expected = grammar.parse(path.read_bytes(), grammar.POSTFIX).values
    assert dict(line.split(b"\t", 1) for line in listed) == expected
    own_map_tools.run("usr/sbin/postmap", "-c", folder, "-i", name, stdin=b"new@example.org new\n")
    each = opened(name)
    assert (each.get(b"new@example.org"), each.get(b"@example.com")) == (b"new", b"jim@example.org")
    each.close()


@pytest.mark.parametrize(
    "text",
    [SMALL, b' x y\nkey\n\na  b  c \n  # no\n\t d\n"a b"@x.example c\nA@x.example twice\na@x.example t\n'],
)
def test_texts_are_read_as_postmap_reads_them(own_map_tools: MapTools, text: bytes) -> None:
    """Continuation lines, comments within an entry, blanks in quotes, lines that are nothing."""
    name = own_map_tools.postmap("btree", text)
    folder = str(own_map_tools.folder)
    listed = own_map_tools.run("usr/sbin/postmap", "-c", folder, "-s", name).splitlines()
    assert grammar.parse(text, grammar.POSTFIX).values == dict(line.split(b"\t", 1) for line in listed)


def test_texts_are_read_as_makemap_reads_them(own_map_tools: MapTools) -> None:
    """One line an entry."""
    text = b"Joe@X.example\t joe smith \n# no\nann@x.example error:nouser 550 no\n"
    each = opened(own_map_tools.makemap("hash", text))
    values = grammar.parse(text, grammar.SENDMAIL).values
    assert len(values) == 2
    for key, value in values.items():
        assert (each.get(key) or b"").strip() == value
    each.close()


def test_the_same_name_reads_the_same_file(tmp_path: Path) -> None:
    """`hash:/x` is /x.db, and so is hash:/x.db, as makemap may be called."""
    assert MapName("hash:/etc/mail/virtusertable").file == "/etc/mail/virtusertable.db"
    assert MapName("hash:/etc/mail/virtusertable.db").file == "/etc/mail/virtusertable.db"
    assert MapName("texthash:/etc/x").kind == "text"
    assert MapName("lmdb:/etc/x").source == "/etc/x"

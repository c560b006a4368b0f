"""Targets: files of an administrator (accounts, maps, config), and what other servers have left behind."""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress

from gpop.accounts import passwdfile, user_settings
from gpop.accounts.account import Accepted, Account, Refused, SourceUnavailable
from gpop.accounts.maps import grammar
from gpop.accounts.names import NameRules, split
from gpop.config import reading
from gpop.migration import courier, fake_uids, header_ids, journal, pop3_client, uidlist
from gpop.migration.servers import NO_TLS, Server
from gpop.migration.state import MAX_UID, BadState
from gpop.migration.uidl_format import WELL_KNOWN, BadFormat, Facts, Format
from tests.accounts.maps.test_damaged import BERKELEY, ENTRIES, ask, cdb
from tests.fuzz.target import TESTS, folder, messages, target

CONF = TESTS.parent / "conf"


# Accounts


def passwd_file(octets: bytes) -> None:
    """Each name of a passwd-file is an account of that name or a fault, and no other name is known."""
    file = passwdfile.PasswdFile("/nowhere")
    file.fault = ""
    file.take_in(octets, 0o600)
    lines = [line for line in octets.split(b"\n") if line.strip() and not line.startswith(b"#")]
    for name in {line.removesuffix(b"\r").partition(b":")[0] for line in lines[:20]} - {b""}:
        with suppress(SourceUnavailable):
            entry = file.lookup(name)
            assert (entry is None and len(name) > 255) or (entry and entry.name == name)
            assert not entry or (0 <= entry.uid < 2**32 - 1 and entry.home.startswith(b"/"))
            assert not entry or entry.allows_peer("192.0.2.7") in (True, False)
    assert file.lookup(b"a name that is nowhere") is None
    assert all(
        1 <= number <= octets.count(b"\n") + 1 and text.isprintable() for number, text in file.problems
    )


VERDICT = Accepted(Account(b"ann", 1000, 1000, (), b"/home/ann", b"/home/ann/Maildir"), "pam", 0)


def user_settings_file(octets: bytes) -> None:
    """What is set for an account is within its bounds, and an account whose line is broken is not served."""
    file = user_settings.UserSettingsFile("/nowhere")
    file.fault = ""
    file.take_in(octets, 0o600)
    said = file.applied(VERDICT, 1.7e9)
    assert isinstance(said, Accepted | Refused)
    if any(line.split()[:1] == [b"ann"] for line in octets.split(b"\n")) and not file._settings.get(b"ann"):
        assert isinstance(said, Refused) and said.code == user_settings.SYS_TEMP
    if isinstance(said, Accepted):
        assert said.removal in ("", "unlink", "hide") or re.fullmatch(user_settings.FOLDER, said.removal)
    assert all(text.isprintable() for _, text in file.problems)


def login_name(octets: bytes) -> None:
    """Whatever somebody calls himself, his name under all rules is the same when he logs in with it again."""
    rules = NameRules(
        "fold-domain", "%/", {"*": "example.org", "192.0.2.1": "other.example"}, ["example.org"]
    )
    for address in ("192.0.2.1", "::ffff:192.0.2.1", "no address"):
        name = rules.login_name(octets, address)
        assert rules.login_name(name, address) == name
        assert rules.account_name(name) in (name, split(name)[0])


def map_text(octets: bytes) -> None:
    """The text of a map is entries, and numbered lines that are none, in either grammar."""
    for each in grammar.GRAMMARS:
        entries = grammar.parse(octets, each)
        assert entries.problem_count + len(entries.values) <= octets.count(b"\n") + 1
        assert all(0 < line <= octets.count(b"\n") + 1 for line, _ in entries.problems)
        assert all(key == key.lower() or each == grammar.POSTFIX for key in entries.values)
        assert all(value.strip(grammar.BLANKS) == value != b"" for value in entries.values.values())


def _compiled(octets: bytes, kind: str, ending: str) -> None:
    path = folder() / "map"
    path.with_suffix(ending).write_bytes(octets)
    assert ask(path, kind)[-2] is None or isinstance(ask(path, kind)[-2], bytes | str)


def map_hash(octets: bytes) -> None:
    """
    Any octets as a Berkeley DB hash file give a key a bounded value, none, or an error that names
    the map.
    """
    _compiled(octets, "hash", ".db")


def map_btree(octets: bytes) -> None:
    """
    Any octets as a Berkeley DB btree file give a key a bounded value, none, or an error that names
    the map.
    """
    _compiled(octets, "btree", ".db")


def map_cdb(octets: bytes) -> None:
    """Any octets as a CDB file give a key a bounded value, none, or an error that names the map."""
    _compiled(octets, "cdb", ".cdb")


def config(octets: bytes) -> None:
    """Any octets are a config, or problems in words that each name a line of the file."""
    path = folder() / "gpop.toml"
    path.write_bytes(octets)
    checked = reading.read(str(path))
    lines = octets.count(b"\n") + octets.count(b"\r") + 1
    for problem in checked.errors + checked.warnings:
        assert problem.text and 0 <= problem.line <= lines
    if not checked.errors:
        checked.config().as_plain()


# What other servers left


def dovecot_uidlist(octets: bytes) -> None:
    """
    A dovecot-uidlist is refused with a line, or has numbers in their bounds and one place for each
    message.
    """
    try:
        said = uidlist.parse(octets)
    except BadState as bad:
        assert 1 <= bad.line <= octets.count(b"\n") + 1 and bad.reason.isprintable()
        return
    assert 1 <= said.uid_validity <= MAX_UID
    assert all(1 <= entry.uid <= MAX_UID and b"/" not in entry.name for entry in said.entries.values())
    places = uidlist.orders(said.entries)
    assert places.keys() == said.entries.keys() and len(set(places.values())) == len(places)


def courier_list(octets: bytes) -> None:
    """A courierpop3dsizelist is refused with a line, or has a printable unique-id for each name."""
    try:
        said = courier.parse(octets)
    except BadState as bad:
        assert 1 <= bad.line <= octets.count(b"\n") + 1 and bad.reason.isprintable()
        return
    assert all(0x21 <= octet <= 0x7E for one in said for octet in one.unique_id)
    assert all(one.name and b"/" not in one.name for one in said)


def fake_uid_list(octets: bytes) -> None:
    """A .fake_uids is refused with a line, or has an id for each number."""
    try:
        said = fake_uids.parse(octets)
    except BadState as bad:
        assert 1 <= bad.line <= octets.count(b"\n") + 1 and bad.reason.isprintable()
        return
    assert all(1 <= number <= MAX_UID and unique_id for number, unique_id in said.items())


def uidl_format(octets: bytes) -> None:
    """A pop3_uidl_format is refused in words, or makes an id of any message, of bounded length."""
    text = octets.decode("utf-8", "replace")
    try:
        made = Format(text)
    except BadFormat as bad:
        assert str(bad)
        return
    for facts in (Facts(1, 2**32 - 1, b"1700000000.a:2,S"), Facts(2**32 - 1, 1, b"\xff" * 255, b"9" * 255)):
        assert len(made.expand(facts)) <= len(WELL_KNOWN.get(text, text)) * 300


def header_id(octets: bytes) -> None:
    """Any message has a header, a popa3d id of 16 characters, and one X-UIDL, none, or a reason why not."""
    with suppress(header_ids.HeaderNotUsable):
        header = header_ids.header_of(octets)
        assert octets.startswith(header) and b"\n\n" not in header
        assert re.fullmatch(rb"[0-9a-f]{16}", header_ids.popa3d(header))
        found = header_ids.x_uidl(header)
        assert found is None or (b"x-uidl" in header.lower() and found == found.strip())


class _Scripted(pop3_client.Client):
    """A client of a server that has said all that it will say."""

    octets = b""

    def _connected(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(self.octets[:60000])
            theirs.shutdown(socket.SHUT_WR)
            self._other = theirs.dup()
        return ours

    def close(self) -> None:
        self._other.close()
        super().close()


def old_server(octets: bytes) -> None:
    """
    Whatever an old server says, an import ends with a named failure, or with as many ids as it has
    messages.
    """
    _Scripted.octets = octets
    server = Server("pop3://old", "old", (), NO_TLS, None)
    client = None
    try:
        client = _Scripted(server, 1, time.monotonic() + 5)
        client.login(b"", b"tim", b"secret")
        count, _ = client.drop_listing()
        ids, sizes = client.unique_ids(count), client.scan_listings(count)
        assert len(ids) == len(sizes) == count
        assert len(client.headers(sizes[:3])) == min(count, 3)
        client.content(1, sizes[0] if sizes else 0)
    except pop3_client.ConversationFailed as failed:
        assert str(failed).isprintable()
    finally:
        if client:
            client.close()


def import_journal(octets: bytes) -> None:
    """Any octets are this run's journal, or refused; and a user who is noted then is found again."""
    path = folder() / "journal"
    path.write_bytes(octets)
    try:
        first = journal.Journal(str(path), {"format": "dovecot"}, again=False)
    except journal.JournalNotUsable as error:
        assert str(error).startswith(str(path))
        return
    first.note(b"j\xff")
    first.close()
    second = journal.Journal(str(path), {"format": "dovecot"}, again=False)
    second.close()
    assert second.done == first.done | {b"j\xff"}


_PASSWD = (
    b"ann:{SHA512-CRYPT}$6$saltsalt$"
    + b"x" * 86
    + b":1000:1000::/home/ann::allow_nets=192.0.2.0/24,::1 nologin\n",
    b"# x\r\njoe:{PLAIN}open sesame:1001:1001:Joe:/home/joe:/bin/sh:maildir=%h/Mail\nann\n",
)
_SETTINGS = b"ann pop3=off\nann removal=.Trash\n* dialogue_until=2026-11-25T18:00:00Z removal=hide\n"
_TEXTS = (b'# x\njoe@x.example  joe\n"a b"@x.example ab\n@x.example\n  error:nouser\n', b"a\\ b c\n x y\r\n")
_UIDLISTS = (
    b"3 V1275660208 N25022 G3085f01b7f11094c501100008c4a11c1\n"
    b"25006 :1234567890.M20046P2137.mailserver,S=4542,W=4642\n"
    b"25017 W2481 P000000ff O3 :1234567891.M1P2.mailserver:2,F\n",
    b"1 1275660208 25022\n17 1234567890.M20046P2137.mailserver\n",
)
_COURIER = b"/3 26 1275660208\n1234567890.M20046P2137.mailserver,S=4542:2,S 4642 17:1275660208:0\na 1 0:0\n"
_CONVERSATION = (
    b"+OK ready\r\n+OK\r\nTOP\r\nUIDL\r\nPIPELINING\r\n.\r\n+OK\r\n+OK\r\n+OK\r\nTOP\r\n.\r\n+OK 2 12\r\n"
    b"+OK\r\n1 a\r\n2 b\r\n.\r\n+OK\r\n1 6\r\n2 6\r\n.\r\n+OK\r\nA: 1\r\n\r\n.\r\n"
    b"+OK\r\n\r\n.\r\n+OK\r\n..x\r\n.\r\n"
)
_JOURNAL = b'{"gpop_uidl_journal": 1, "format": "dovecot"}\n{"done": "ann"}\n{"do'
_CONFIGS = [path.read_bytes()[:3000] for path in sorted(CONF.rglob("*.toml"))]
_ODD_CONFIGS = [
    b'[server]\nlisten = ["127.0.0.1:110"]\n[[accounts.sources]]\ntype = "pam"\n',
    b"a = " + b"[" * 3000 + b"]" * 3000,
    b"a." * 3000 + b"b = 1\n",
    b"[server]\nfronts = 0x" + b"f" * 5000 + b"\n",
    b"[server]\nfronts = " + b"9" * 5000 + b"\n",
    b"[session]\nlock_wait_s = " + b"9" * 400 + b"\n",
]
_DATABASES = {
    kind: [path.read_bytes() for path in BERKELEY if path.stem.startswith(kind)] for kind in ("hash", "btree")
}
_CDB = cdb({key: value for key, value in ENTRIES.items() if len(key) < 12 or b"5" in key})

TARGETS = (
    target(passwd_file, _PASSWD),
    target(user_settings_file, [_SETTINGS, b"ann pop3=on dialogue_until=0001-01-01T00:00:00+23:59\n"]),
    target(login_name, [b"joe", b"a%b@X.example", b"joe@", b"@", b"J\xff/example.org", "É@É".encode()]),
    target(map_text, _TEXTS),
    target(map_hash, _DATABASES["hash"], examples=40),
    target(map_btree, _DATABASES["btree"], examples=40),
    target(map_cdb, [_CDB], examples=40),
    target(config, [*_CONFIGS, *_ODD_CONFIGS], 25),
    target(dovecot_uidlist, _UIDLISTS),
    target(courier_list, [_COURIER]),
    target(fake_uid_list, [b"17 UID17-1275660208\n\n3\tx\n"]),
    target(
        uidl_format, [name.encode() for name in (*WELL_KNOWN, *WELL_KNOWN.values(), "%{uid | hex(8)}-%Mf%%")]
    ),
    target(header_id, [*messages(), b"X-UIDL: a\nx-uidl: a\n\n", b"Date: x\r\nReceived: y\r\n z\r\n\r\n"]),
    target(old_server, [_CONVERSATION, b"-ERR\r\n", b"+OK\r\n-ERR\r\n"], examples=40),
    target(import_journal, [_JOURNAL, b"", _JOURNAL + b"\n", b"[" * 50_000 + b"\n"], examples=40),
)

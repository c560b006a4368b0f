"""
PURE: the frames that gpop's processes send each other.

A frame is one SOCK_SEQPACKET message: a fixed header (version, kind, length of the
body) and the fields of its kind, in the order of `FRAMES`, each with a cap. `FRAMES` is
the whole language: what is not in it is a `BadFrame`, and a `BadFrame` ends the
conversation with whoever sent it. A frame says nothing of who may send it when; that is
decided by the process that receives it.

Everybody executes this module, root included, on octets from less trusted processes. It
knows no sockets and no descriptors but their number.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# To be raised when a frame changes: during an upgrade processes of two versions talk, and a process that
# gets a frame of another version ends the conversation instead of misreading it.
VERSION = 3
HEADER = struct.Struct("!BBH")
INTEGER = struct.Struct("!q")
LENGTH = struct.Struct("!H")
# For so many integers in a row; a format made in a session would cost it pages.
FEW_INTEGERS = tuple([struct.Struct(f"!{count}Q") for count in range(17)])
# The body's length has 16 bits.
MAX_FRAME_OCTETS = HEADER.size + 0xFFFF
MAX_NAME_OCTETS = 255  # a command line has 255 octets (RFC 2449 §4), a SASL name is held to the same
MAX_PASSWORD_OCTETS = 1024  # python-pam and crypt(3) stop at 511; longer is never right
MAX_TAG_OCTETS = 35  # of a language; a longer one would be an odd file name in gpop/languages
MAX_PIPELINED_OCTETS = 4096  # what a front may have read beyond a login, see `connection.RECEIVE_OCTETS`
MAX_GROUPS = 1024
MAX_SERVE_OCTETS = 20480  # a SERVE frame with long paths and all its groups

INT, OCTETS, TEXT, INTS = range(4)

LOGIN, ACCEPTED, REFUSED, SERVE, PIPELINED, SERVING, TOTALS, NOTED, READY, ATTACH, DRAIN = range(1, 12)
RELAYED_LOGIN, ALIVE, CUT_OFF, LOG, LOOK, TALLY, WRITER, LOST = range(12, 20)
# Between the broker and an administrator's command.
LIST_SESSIONS, SESSION_LIST, KICK, KICKED = range(32, 36)
CONTROL_SOCKET = "control"  # in server.run_dir
# In a list of sessions, in front of each SERVE frame: its octets, and the session's process id.
SESSION_RECORD = struct.Struct("!II")


class BadFrame(Exception):
    """A frame that no correct gpop process sends; the text says what is wrong, never what it held."""


class FrameKind:
    """One row of `FRAMES`: a name, the number of descriptors, and (field, type, cap) in order."""

    __slots__ = ("descriptors", "fields", "name", "names")

    def __init__(self, name: str, descriptors: int, *fields: tuple[str, int, int]) -> None:
        self.name = name
        self.descriptors = descriptors
        self.fields = fields
        self.names = frozenset(field[0] for field in fields)


# What a session counts, for `session_closed`.
COUNTS = (
    "cache_us",
    "messages",
    "octets",
    "retr",
    "retr_octets",
    "top",
    "top_octets",
    "marked",
    "expired",
    "removed",
    "not_removed",
    "octets_sent",
)

LOGIN_FIELDS = (
    ("login_id", INT, 0),
    ("name", OCTETS, MAX_NAME_OCTETS),
    ("password", OCTETS, MAX_PASSWORD_OCTETS),
    ("mechanism", TEXT, 32),
    ("peer", TEXT, 64),
    ("peer_port", INT, 0),
    ("local", TEXT, 64),
    ("local_port", INT, 0),
    ("received_ms", INT, 0),  # CLOCK_MONOTONIC when PASS had come
    ("dialogue", INT, 0),  # 1: the session reports its dialogue for the log
    ("pipelined", INT, 0),  # 1: a PIPELINED frame lies in the session channel
    # What is to be tried after name and password as they were sent (RFC 4013), "" for nothing else.
    ("prepared_name", OCTETS, MAX_NAME_OCTETS),
    ("prepared_password", OCTETS, MAX_PASSWORD_OCTETS),
    ("utf8", INT, 0),  # 1: the client has said UTF8
    ("language", TEXT, MAX_TAG_OCTETS),  # the tag of the one it chose with LANG, "" for English
)

FRAMES = {
    # front -> auth. Descriptors: the client's stream, auth's end of the session channel.
    LOGIN: FrameKind("login", 2, *LOGIN_FIELDS),
    # The same for a client whose stream stays with the front, which relays (TLS). Descriptors: the session's
    # end of the relay, auth's end of the session channel, and the client's stream, for its address alone.
    RELAYED_LOGIN: FrameKind("relayed_login", 3, *LOGIN_FIELDS),
    # auth -> front, on the session channel. Names are text fit for a log.
    ACCEPTED: FrameKind(
        "accepted",
        0,
        ("user", TEXT, 1024),
        ("account", TEXT, 1024),
        ("source", TEXT, 32),
        ("auth_us", INT, 0),
        ("dialogue", INT, 0),  # 1: the session was told to report its dialogue for the log
    ),
    # auth or broker -> front, on the session channel. `code` is a response code of RFC 2449/3206.
    REFUSED: FrameKind(
        "refused",
        0,
        ("code", TEXT, 16),
        ("reason", TEXT, 64),
        ("user", TEXT, 1024),
        ("source", TEXT, 32),
        ("auth_us", INT, 0),
    ),
    # auth -> broker, with the two descriptors of the LOGIN it answers.
    SERVE: FrameKind(
        "serve",
        2,
        ("uid", INT, 0),  # these two first: see `maildrop_key`
        ("maildir", OCTETS, 4096),
        ("login_id", INT, 0),
        ("account", OCTETS, 1024),
        ("gid", INT, 0),
        ("groups", INTS, MAX_GROUPS),
        ("home", OCTETS, 4096),
        ("peer", TEXT, 64),
        ("received_ms", INT, 0),  # as in LOGIN
        ("removal", TEXT, 128),  # what becomes of removed messages, "" where the settings say it
        ("dialogue", INT, 0),
        ("pipelined", INT, 0),
        ("utf8", INT, 0),
        ("language", TEXT, MAX_TAG_OCTETS),
    ),
    # front -> session, put into the channel before anybody else holds it: octets read, not used. Most logins
    # have none, and no such frame.
    PIPELINED: FrameKind("pipelined", 0, ("octets", OCTETS, MAX_PIPELINED_OCTETS)),
    # session -> front: the client's stream is the session's from here on.
    SERVING: FrameKind("serving", 0),
    # session -> front, once, at the end.
    TOTALS: FrameKind(
        "totals",
        0,
        ("close_reason", TEXT, 32),
        ("cache", TEXT, 16),
        ("cache_reason", TEXT, 64),
        ("fault", TEXT, 1024),
        ("counts", INTS, len(COUNTS)),  # in the order of COUNTS
    ),
    # session -> front: something for the log that is not a total (see events.SESSION_NOTES).
    NOTED: FrameKind("noted", 0, ("event", TEXT, 64), ("detail", TEXT, 2048)),
    # whom it has started -> broker: warmed, dropped, at work. A session process that is reused: free again.
    READY: FrameKind("ready", 0),
    # metrics -> broker: see who is at work.
    LOOK: FrameKind("look", 0),
    # broker -> metrics: a tally.
    TALLY: FrameKind("tally", 1),
    # broker -> auth: a front's login socket. broker -> front: its login socket to auth. `front` is its pid.
    ATTACH: FrameKind("attach", 1, ("front", INT, 0)),
    # an administrator's command -> broker, and the answers. The list is in the descriptor: the SERVE frames
    # of the sessions that run, each behind a SESSION_RECORD.
    LIST_SESSIONS: FrameKind("list_sessions", 0),
    SESSION_LIST: FrameKind("session_list", 1, ("sessions", INT, 0)),
    KICK: FrameKind("kick", 0, ("account", OCTETS, 1024)),
    KICKED: FrameKind("kicked", 0, ("sessions", INT, 0)),
    # broker -> auth or log: where the lines of the log go from here on. To a front that has written them
    # itself until now (an older broker has started it): its log pipe.
    LOG: FrameKind("log", 1),
    # broker -> log: the end of another process's log pipe that is read, and whose lines come out of it.
    WRITER: FrameKind("writer", 1, ("name", TEXT, 16), ("pid", INT, 0)),
    # broker -> front, auth or log: take nothing new, end when done; at_once: drop peers before login.
    DRAIN: FrameKind("drain", 0, ("at_once", INT, 0)),
    # broker -> whom it has started: are you at work? The same back, in its turn: yes.
    ALIVE: FrameKind("alive", 0),
    # auth or log -> broker: it ended the conversation with that front (for log: or metrics process), which
    # is to be replaced. `front` is its pid.
    CUT_OFF: FrameKind("cut_off", 0, ("front", INT, 0)),
    # front, auth or log -> broker: it had no descriptor free for that of a frame of this kind (ATTACH, LOG,
    # WRITER), which is to be sent again, later. `pid` is that in the frame, 0 where it has none.
    LOST: FrameKind("lost", 0, ("frame_kind", INT, 0), ("pid", INT, 0)),
}


class Frame:
    """A decoded frame: its kind, and its fields by name."""

    __slots__ = ("fields", "kind")

    def __init__(self, kind: int, fields: dict[str, Any]) -> None:
        self.kind = kind
        self.fields = fields

    def __repr__(self) -> str:
        # Field values stay out: one of them may be a password.
        return f"<Frame {FRAMES[self.kind].name}>"


def _too_long(row: FrameKind, name: str, length: int, cap: int) -> BadFrame:
    return BadFrame(f"{row.name}.{name} has {length} items, at most {cap} are allowed")


def _integers(count: int) -> struct.Struct:
    return FEW_INTEGERS[count] if count < len(FEW_INTEGERS) else struct.Struct(f"!{count}Q")


# In what `maildrop_key` returns the path begins here.
KEY_PATH_AT = INTEGER.size + LENGTH.size


def kind_of(octets: bytes) -> int:
    """Return the kind that a frame says it is, without decoding it; 0 if it is none of this version."""
    return octets[1] if len(octets) >= HEADER.size and octets[0] == VERSION else 0


def maildrop_key(octets: bytes) -> bytes:
    """
    Return the octets of a SERVE frame that say whose maildrop it is: uid and path.

    The broker needs no more of a login than to tell maildrops apart; the session decodes it.

    Raises:
        BadFrame: the frame ends before that.
    """
    length_at = HEADER.size + INTEGER.size
    try:
        length: int = LENGTH.unpack_from(octets, length_at)[0]
    except struct.error:
        raise BadFrame(f"{len(octets)} octets are no serve frame") from None
    return octets[HEADER.size : length_at + LENGTH.size + length]


def encode(kind: int, **fields: Any) -> bytes:
    """
    Return the frame of `kind` with exactly the fields of its kind.

    Raises:
        BadFrame: a field is missing, unknown, too long, or does not fit its type.
    """
    row = FRAMES[kind]
    if fields.keys() != row.names:
        raise BadFrame(f"{row.name} takes {sorted(row.names)}, got {sorted(fields)}")
    parts = []
    try:
        for name, kind_of_field, cap in row.fields:
            value = fields[name]
            if kind_of_field == INT:
                parts.append(INTEGER.pack(value))
                continue
            if kind_of_field == INTS:
                if len(value) > cap:
                    raise _too_long(row, name, len(value), cap)
                parts.append(LENGTH.pack(len(value)) + _integers(len(value)).pack(*value))
                continue
            octets = value.encode("utf-8", "backslashreplace") if kind_of_field == TEXT else value
            if len(octets) > cap:
                raise _too_long(row, name, len(octets), cap)
            parts.append(LENGTH.pack(len(octets)) + octets)
    except struct.error:
        raise BadFrame(f"{row.name}.{name} does not fit its type") from None
    body = b"".join(parts)
    if len(body) > MAX_FRAME_OCTETS - HEADER.size:
        raise BadFrame(f"{row.name} has {len(body)} octets, more than a frame holds")
    return HEADER.pack(VERSION, kind, len(body)) + body


def decode(octets: bytes) -> Frame:
    """
    Return the frame that `octets` are, whole.

    Raises:
        BadFrame: the octets are not exactly one frame of a known kind, within its caps.
    """
    kind = kind_of(octets)
    return Frame(kind, fields_of(octets, kind))


def fields_of(octets: bytes, kind: int) -> dict[str, Any]:
    """
    Return the fields of the frame of `kind` that `octets` are, whole.

    Raises:
        BadFrame: as `decode`, or it is of another kind.
    """
    if len(octets) < HEADER.size:
        raise BadFrame(f"{len(octets)} octets are no frame")
    version, is_kind, length = HEADER.unpack_from(octets)
    row = FRAMES.get(kind)
    if version != VERSION or is_kind != kind or row is None or length != len(octets) - HEADER.size:
        raise BadFrame(f"bad header: version {version}, kind {is_kind}, length {length} of {len(octets)}")
    fields: dict[str, Any] = {}
    at = HEADER.size
    try:
        for name, kind_of_field, cap in row.fields:
            if kind_of_field == INT:
                fields[name] = INTEGER.unpack_from(octets, at)[0]
                at += INTEGER.size
                continue
            count = LENGTH.unpack_from(octets, at)[0]
            at += LENGTH.size
            if count > cap:
                raise _too_long(row, name, count, cap)
            end = at + (8 * count if kind_of_field == INTS else count)
            if end > len(octets):
                raise BadFrame(f"{row.name}.{name} ends after the frame")
            if kind_of_field == INTS:
                fields[name] = list(_integers(count).unpack_from(octets, at))
            else:
                fields[name] = octets[at:end] if kind_of_field == OCTETS else octets[at:end].decode("utf-8")
            at = end
    except (struct.error, UnicodeDecodeError) as error:
        raise BadFrame(f"{row.name}: {type(error).__name__} at octet {at}") from None
    if at != len(octets):
        raise BadFrame(f"{row.name} has {len(octets) - at} octets too many")
    return fields

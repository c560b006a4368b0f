"""
The log: names of its events, and how a line is made and written.

One JSON object a line (a readable form on a terminal), at most `MAX_LINE_OCTETS` long and
written with one call that never blocks: a log reader that stalls costs lines, which are
counted and reported, and never the service. The broker and auth write with `Log`; the
front wraps the same `Log` in structlog (`structured`). Where the lines go, `log_target` knows. Who has no
rights writes to a pipe, and the log process takes it from there (`log.log`).

Everybody who logs executes this. It refuses to know secrets: no field ever is a password,
and no octet of a peer or a file name reaches a line unescaped.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat
import time

from gpop.json_text import json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gpop.tally import Tally

# POSIX: a write of up to PIPE_BUF octets (4,096 on Linux) to a pipe is never mixed with another's.
MAX_LINE_OCTETS = 4096
# What the log process adds to a line has room in it.
MAX_JSON_OCTETS = MAX_LINE_OCTETS - 32
MAX_FIELD_CHARACTERS = 512

# Every event, by the process that writes it. docs/log.md says what their fields mean.
EVENTS_OF_FRONT = {
    "session_closed": "a session ended: the canonical line, one for each that was accepted",
    "login_refused": "a login was not accepted, with the peer's address; written at once",
    "connection_closed": "a peer left, or was closed, without a session (debug)",
    "command_received": "one line of dialogue from the peer, passwords hidden (debug)",
    "reply_sent": "one reply to the peer (debug)",
    "certificate_loaded": "a front has loaded a certificate; how many days it lasts",
    "tls_failed": "a peer and the front could not agree on TLS, or it was cut off within the handshake",
    "front_started": "a front accepts connections",
    "front_draining": "a front stopped accepting",
    "connections_exhausted": "a front is at server.max_connections: it closed an idle peer, or the new one",
    "limit_reached": "a peer was turned away because its address, or this connection, did too much",
    "proxy_refused": "a connection to server.proxy_listen was closed: who sent it, or what, is not accepted",
    # written by the front for a session
    "cache_unwritable": "the statcache could not be written; the session was served from memory",
    "cache_damaged": "the statcache was unusable and was rebuilt",
    "size_corrected": "a message had other octets than listed (a W= that lies); the statcache was corrected",
    "message_unreadable": "a message that a client asked for could not be sent",
    "message_skipped": "an entry of new/ or cur/ is no regular file and is not served",
    "message_removed": "one message that UPDATE has removed (log.removals)",
    "removal_failed": "a message marked as deleted could not be removed",
    "move_failed": "a retrieved message could not be moved to cur/",
    "maildirsize_failed": "the Maildir++ quota file could not be updated",
    "unique_ids_changed": "messages have other unique-ids than before: clients will download them again",
    "retention_failed": "when messages were retrieved could not be read or noted; they stay for longer",
}
EVENTS_OF_AUTH = {
    "auth_started": "auth is warmed and decides logins",
    "auth_fault": "an account source failed; logins get [SYS/TEMP]",
    "passwd_file_read": "a passwd-file was read, or read again after a change",
    "passwd_file_problem": "a line of a passwd-file is not usable",
    "user_settings_read": "the settings of single accounts were read, or read again after a change",
    "user_settings_problem": "a line of theirs is not usable; logins of its account get [SYS/TEMP]",
    "virtual_map_read": "the text of a virtual user map was read, or read again after a change",
    "virtual_map_problem": "a line of it is no entry",
    "virtual_map_stale": "a compiled map is older than the text that it is made of",
    "virtual_user_refused": "a map says that nobody may log in by this name, or that it is several",
    "auth_cache_dropped": "the auth cache was emptied, and why",
    "penalty_raised": "a source address has to wait longer before its next login",
}
EVENTS_OF_METRICS = {
    "metrics_started": "metrics can be had: addresses",
}
EVENTS_OF_LOG = {
    "log_line_rejected": "a process wrote what is no line of the log, or none of its own; it is ended",
}
EVENTS_OF_BROKER = {
    "broker_started": "gpop serves: addresses, processes, version",
    "broker_stopped": "the last process ended",
    "shutdown_started": "no new connections; sessions have the grace time to end",
    "sessions_kicked": "an administrator has ended the sessions of an account (gpop kick)",
    "sessions_ended": "the grace time is over and what was left was ended",
    "config_warning": "a setting that works and may not be what was meant",
    "certificate_changed": "the files of a certificate have changed; a reload follows, as after SIGHUP",
    "config_rejected": "a changed config is not usable; the old one stays in force",
    "reload_started": "SIGHUP: new processes are being started",
    "reload_finished": "the new processes serve, the old ones drain",
    "reload_failed": "the new processes did not come up; the old ones stay",
    "upgrade_started": "SIGUSR2: processes of the installed version are being started",
    "upgrade_finished": "the broker is the installed version's; its new processes serve",
    "upgrade_failed": "the installed version did not come up; the old one serves on",
    "process_stuck": "a process does not answer, or is not ready in time, and is killed",
    "process_ended": "a front, auth, or what writes log or metrics ended unexpectedly; it is started again",
    "session_died": "a session ended by a signal or a fault of its own",
    "session_unreported": "a session ended in order, but its front was gone: there is no session_closed",
    "log_reopened": "the log goes to a file, or a syslog daemon, that was opened anew",
    "log_reopen_failed": "the log could not be opened anew; it goes where it went",
}
EVENTS_OF_ALL = {
    "frame_rejected": "a gpop process sent what no correct one sends; its conversation was ended",
    "descriptors_exhausted": "a process had no descriptor free for what it was handed (LimitNOFILE)",
    "log_lines_dropped": "the log could not be written for a while; so many lines are missing",
    "process_fault": "an unexpected error ended a process or a connection",
}
EVENTS = (
    EVENTS_OF_FRONT | EVENTS_OF_AUTH | EVENTS_OF_METRICS | EVENTS_OF_LOG | EVENTS_OF_BROKER | EVENTS_OF_ALL
)
# Those that hold no log, only a pipe to the log process, and what each may say there.
EVENTS_BY_PIPE = {"front": EVENTS_OF_FRONT | EVENTS_OF_ALL, "metrics": EVENTS_OF_METRICS | EVENTS_OF_ALL}

# Reasons of refused logins that mean "too much at the moment": of these the log gets some, with their
# number, because a flood of logins would else be a flood of lines.
LIMIT_REASONS = (
    "checks_exhausted",
    "too_many_attempts",
    "too_many_logins",
    "too_many_logins_of_address",
    "too_many_logins_per_second",
)

# What a session may ask its front to write, and at which level.
SESSION_NOTES = {
    "cache_unwritable": "warning",
    "cache_damaged": "warning",
    "size_corrected": "warning",
    "message_unreadable": "warning",
    "message_skipped": "info",
    "message_removed": "info",
    "removal_failed": "error",
    "move_failed": "warning",
    "maildirsize_failed": "warning",
    "unique_ids_changed": "error",
    "retention_failed": "warning",
    # Only sent where dialogue was asked for, so never a matter of the log level.
    "command_received": "info",
    "reply_sent": "info",
}
DIALOGUE_NOTES = ("command_received", "reply_sent")

# RFC 5424 §6.2.1.
SEVERITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}


def printable(octets: bytes, limit: int = MAX_FIELD_CHARACTERS) -> str:
    """Return octets of a peer or a file name as text fit for a log: escaped, and cut at `limit`."""
    text = octets[:limit].decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(map(_printable_character, text))


def printable_text(text: str) -> str:
    """Return text that holds somebody else's words (an error's, say) as it can be printed."""
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    # Not "unicode_escape": that codec is a module, and a jailed process can load none any more.
    return character if character.isprintable() else ascii(character)[1:-1]


def place(error: BaseException) -> str:
    """Name an error and where it came from; what it was about stays out, it may be a password."""
    where = error.__traceback__
    while where and where.tb_next:
        where = where.tb_next
    at = f" at {os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno}" if where else ""
    return type(error).__name__ + at


class Log:
    """
    Writes events to `fd`, which it does not own, as `process` ("broker", "auth", "front", "log").

    `text` makes JSON of a line's fields: who writes many lines has a quicker way than who must stay small.
    `facility` is that of syslog if `fd` is the socket of its daemon, else -1.

    Attributes:
        dropped: lines that could not be written since the last one that could.
        tally: where the events are counted, if they are.
    """

    __slots__ = (
        *("_torn", "console", "debug", "dropped", "facility", "fd", "process", "socket", "tally"),
        "text",
    )

    def __init__(
        self,
        fd: int,
        process: str,
        console: bool = False,
        debug: bool = False,
        text: Callable[[Any], str] = json_text,
        facility: int = -1,
    ) -> None:
        self.fd = fd
        self.process = process
        self.console = console
        self.debug = debug
        self.dropped = 0
        self.text = text
        self.facility = facility
        self.tally: Tally | None = None
        self._torn = False
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        self.socket = _socket.socket(fileno=os.dup(fd)) if is_socket else None

    def replace(self, fd: int) -> None:
        """
        Write to what `fd` is from here on; takes it over.

        It is of the same kind as before, or the pipe to a log process, which brings lines into their form.
        """
        if _is_pipe(fd):
            self.console, self.facility = False, -1
            if self.socket is not None:
                self.socket.close()
                self.socket = None
        os.dup2(fd, self.fd, inheritable=False)
        if self.socket is not None:
            os.dup2(fd, self.socket.fileno(), inheritable=False)
        os.close(fd)
        self._torn = False

    def write(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write one event. Fields are numbers, booleans, None, text, or lists of these."""
        if level == "debug" and not self.debug:
            return
        self.write_line(self.line(event, level, fields))

    def line(self, event: str, level: str, fields: dict[str, Any]) -> str:
        """Return the line of an event, shortened field by field until it fits; the event is counted."""
        assert event in EVENTS, event
        if self.tally is not None:
            self.tally.add(("events", event))
        return self._line(event, level, fields)

    def _line(self, event: str, level: str, fields: dict[str, Any]) -> str:
        if self.console:
            return self.console_line(os.getpid(), event, level, self.process, fields)
        return self.head(os.getpid(), level) + self._json_line(event, level, fields)

    def head(self, pid: int, level: str) -> str:
        """Return what stands before a line of the process `pid`."""
        return f"<{self.facility * 8 + SEVERITIES[level]}>{_syslog_tag(pid)}" if self.facility >= 0 else ""

    def console_line(self, pid: int, event: str, level: str, process: str, fields: dict[str, Any]) -> str:
        """Return a line of whichever process in the form for eyes."""
        line = _console_line(event, level, process, fields)[: MAX_LINE_OCTETS // 4]
        return self.head(pid, level) + line

    def _json_line(self, event: str, level: str, fields: dict[str, Any]) -> str:
        head = {
            "ts": timestamp(time.time()),
            "level": level,
            "event": event,
            "process": self.process,
        }
        line = self.text(head | _shortened(fields, MAX_FIELD_CHARACTERS))
        for limit in (128, 32, 8):
            if len(line) < MAX_JSON_OCTETS:
                break
            line = self.text(head | _shortened(fields, limit) | {"shortened": True})
        return line if len(line) < MAX_JSON_OCTETS else self.text(head | {"shortened": True})

    def write_line(self, line: str, lines: int = 1) -> None:
        """Write a rendered line, or `lines` of them; what can't be written at once is dropped and counted."""
        if self.dropped:
            dropped = self.dropped
            if not self._put(self._line("log_lines_dropped", "warning", {"lines": dropped})):
                self._drop(lines)
                return
            self.dropped -= dropped
        if not self._put(line):
            self._drop(lines)

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        if self.tally is not None:
            self.tally.add(("log_lines_dropped",), lines)

    def _put(self, line: str) -> bool:
        octets = (line if self.facility >= 0 else line + "\n").encode("utf-8", "backslashreplace")
        try:
            if self.socket is not None:
                self.socket.send(octets, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
                return True
            if self._torn:
                octets = b"\n" + octets
            written = os.write(self.fd, octets)
        except OSError:
            return False  # full, stalled or gone: whatever it is, it is no reason to end a service
        # A disk that is nearly full takes a part of a line. The next one must not go on where that ends.
        self._torn = written < len(octets)
        return not self._torn


def _is_pipe(fd: int) -> bool:
    try:
        # Not fstat: who is confined can't ask that any more.
        fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return False
    return True


def timestamp(now: float) -> str:
    """Return a time (seconds since 1970) as it stands in a line: of two, the later one sorts behind."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


def log_of(process: str, options: dict[str, str], text: Callable[[Any], str] = json_text) -> Log:
    """Return the log of a process that the broker started with these `options`."""
    facility = int(options.get("log-facility", "-1"))
    return Log(int(options["log-fd"]), process, "console" in options, "debug" in options, text, facility)


def _syslog_tag(pid: int) -> str:
    """What stands before a message in the form that every syslog daemon knows (RFC 3164 §4.1)."""
    return f"{time.strftime('%b %e %H:%M:%S')} gpop[{pid}]: "


def _shortened(fields: dict[str, Any], limit: int) -> dict[str, Any]:
    """
    Return fields as a line has them: no text is longer than `limit`, and all of it printable.

    Whatever a session says gets here. The log process makes printable what is not, and who wrote a line that
    is too long only then is not believed any more.
    """
    shortened: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, str):
            shortened[name] = printable_text(value)[:limit]
        elif isinstance(value, list):
            shortened[name] = [
                printable_text(item)[:limit] if isinstance(item, str) else item for item in value[:limit]
            ]
        else:
            shortened[name] = value
    return shortened


def _console_line(event: str, level: str, process: str, fields: dict[str, Any]) -> str:
    words = " ".join(f"{name}={_console_value(value)}" for name, value in fields.items() if value is not None)
    return f"{time.strftime('%H:%M:%S')} {level:<7} {process:<6} {event:<18} {words}"


def _console_value(value: Any) -> str:
    if not isinstance(value, str):
        return json_text(value)
    plain = value.isprintable() and " " not in value and '"' not in value and value != ""
    return value if plain else json_text(value)


def structured(log: Log) -> Any:
    """
    Return a structlog logger that writes to `log`: `.info(event, **fields)`, or `bind()` context first.

    Only the front calls this; nobody else pays for structlog.
    """
    import structlog

    def render(_logger: Any, level: str, fields: Any) -> str:
        return log.line(fields.pop("event"), level, fields)

    logger = structlog.wrap_logger(
        _Sink(log),
        processors=[render],
        wrapper_class=structlog.make_filtering_bound_logger(10 if log.debug else 20),
    )
    return logger.bind()


class _Sink:
    """What structlog hands a rendered line to, whatever the level."""

    def __init__(self, log: Log) -> None:
        self.debug = self.info = self.warning = self.error = log.write_line

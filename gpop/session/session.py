"""
PROCESS: the session. Forked from the broker; becomes the mail user, jailed in the maildrop.

Speaks TRANSACTION and UPDATE with blocking calls, then ends (`run`), or waits for another login
where processes are reused (`run_again`). Until `become_user` returns this runs as root, and
touches nothing but the account it was given. What a client asks for is answered by `poll` as
long as that is the usual little, and else by `conversation`.
"""

from __future__ import annotations

import _socket
import os
import resource
import time

from gpop import languages, signals
from gpop.events import printable
from gpop.maildrop import errors, hit, lock, opening
from gpop.pop3 import wire
from gpop.pop3.commands import policies
from gpop.pop3.languages import Languages, Speech
from gpop.privsep import channel, credentials, messages
from gpop.session import poll
from gpop.session.conversation import BYE, Conversation
from gpop.session.report import Report
from gpop.session.stream import SessionEnd, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gpop.config import SessionSettings
    from gpop.maildrop.hit import Hit
    from gpop.maildrop.opened import Opened

    # Becomes the user of a login, and returns a descriptor of the Maildir.
    Enter = Callable[[dict[str, Any], SessionSettings], int]

# Exit status of a session whose front was gone when it ended.
EXIT_UNREPORTED = 3

GREETING = wire.ok("maildrop locked and ready")
UNAVAILABLE = wire.err("The maildrop can't be used now, please try again later", "SYS/TEMP")
IN_USE = wire.err("The maildrop is in use by another session", "IN-USE")

# What a process that is reused says between two sessions.
FREE = messages.encode(messages.READY)
# A session with another end than these is the last one of its process.
ORDINARY_ENDS = ("quit", "disconnect", "autologout", "in_use")
# A process that has grown this large (a large maildrop was listed anew) is not reused. Code shared with
# others, some 12 MB, counts as well.
MOST_KIB = 49152


def enter(login: dict[str, Any], settings: SessionSettings) -> int:
    """Become the mail user (where there is root to give up); returns the Maildir's descriptor."""
    if os.geteuid() != 0:
        return credentials.open_own_maildir(login["uid"], login["home"], login["maildir"])
    return credentials.become_user(
        login["uid"],
        login["gid"],
        login["groups"],
        login["home"],
        login["maildir"],
        settings.jail,
        (settings.first_valid_uid, settings.first_valid_gid),
    )


def run(
    octets: bytes,
    client: int,
    channel_fd: int,
    settings: SessionSettings,
    options: opening.Options,
    confine: Callable[[], object],
    enter: Enter = enter,
    closerange: Callable[[int, int], object] = os.closerange,
    end: Callable[[int], object] = os._exit,
) -> None:
    """
    Be the session of a login, the SERVE frame in `octets`, in a process just forked; never returns.

    Takes over both descriptors. The exit status is 0 if the front was told how it ended,
    else one of EXIT_…; the broker logs those. What can't be taken back is in the last four
    parameters: giving up system calls, giving up root, closing others' descriptors, and the end.
    `rehearsal` has other ones.
    """
    status = 1
    try:
        signals.set_wakeup_fd(-1)
        # Every descriptor above 2 but our two: nobody else's may reach the mail user.
        low, high = (client, channel_fd) if client < channel_fd else (channel_fd, client)
        closerange(3, low)
        closerange(low + 1, high)
        closerange(high + 1, 1 << 20)
        status, _, _ = _session(octets, client, channel_fd, settings, options, enter, confine)
    finally:
        end(status)


def run_again(
    octets: bytes,
    client: int,
    channel_fd: int,
    control_fd: int,
    settings: SessionSettings,
    options: opening.Options,
    confine: Callable[[], object],
) -> None:
    """
    Be the session of a login, as `run`, then of others that come on `control_fd`; never returns.

    Ends when the broker closes that, or after a session that ended in no ordinary way: what may
    have gone wrong in it is to go wrong once.
    """
    status = 1
    try:
        signals.set_wakeup_fd(-1)
        last = 2
        for fd in sorted((client, channel_fd, control_fd)):
            os.closerange(last + 1, fd)
            last = fd
        os.closerange(last + 1, 1 << 20)
        control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, control_fd)
        store = _Store(settings, confine)
        while True:
            status, stream, report = _session(
                octets, client, channel_fd, settings, options, store.enter, store.confine
            )
            stream.close()
            report.close()
            # What came too late for the session is none of the next one's business.
            signals.actions.clear()
            signals.unblock_ending()
            if status or report.close_reason not in ORDINARY_ENDS or _kib() > MOST_KIB:
                break
            # No broker, or none that has another login for us: that ends this process, in order.
            channel.send(control, FREE)
            octets, fds = channel.receive_octets(control, messages.MAX_SERVE_OCTETS)
            client, channel_fd = fds
    finally:
        os._exit(status)


def _kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _Store:
    """The store that a reused process serves: entered once, for good; all its Maildirs lie below."""

    __slots__ = ("_below", "_confine", "_confined", "_identity", "_jailed")

    def __init__(self, settings: SessionSettings, confine: Callable[[], object]) -> None:
        self._below = os.fsencode(settings.reuse_below)
        self._confine = confine
        self._confined = False
        self._jailed = False
        self._identity: tuple[Any, ...] | None = None

    def enter(self, login: dict[str, Any], settings: SessionSettings) -> int:
        """
        Be the mail user, jailed in the store, and open the login's Maildir; returns its descriptor.

        Raises:
            CredentialsRefused, MaildirAbsent, OSError: as `enter`; or it is another user's login.
        """
        identity = login["uid"], login["gid"], login["groups"]
        if self._identity is None:
            if os.geteuid() == 0:
                first_valid = settings.first_valid_uid, settings.first_valid_gid
                credentials.become_user_of_store(*identity, self._below, settings.jail, first_valid)
                self._jailed = settings.jail != "none"
            self._identity = identity
        elif identity != self._identity:
            raise credentials.CredentialsRefused("other_identity")
        return credentials.open_own_maildir(
            login["uid"], self._seen(login["home"]), self._seen(login["maildir"])
        )

    def confine(self) -> None:
        """Give up system calls, once for all logins: a second filter would be asked at each call as well."""
        if not self._confined:
            self._confine()
            self._confined = True

    def _seen(self, path: bytes) -> bytes:
        """The path as it is in here."""
        return path[len(self._below) :] if self._jailed and path.startswith(self._below + b"/") else path


def _session(
    octets: bytes,
    client: int,
    channel_fd: int,
    settings: SessionSettings,
    options: opening.Options,
    enter: Enter,
    confine: Callable[[], object],
) -> tuple[int, Stream, Report]:
    """Be the session of one login; returns the exit status, and what is still open."""
    login = messages.fields_of(octets, messages.SERVE)
    stream = Stream(client, settings.takeover_after_s)
    signals.actions.clear()
    signals.actions[signals.TERM] = stream.end
    signals.actions[signals.USR1] = stream.end_if_silent
    signals.actions[signals.USR2] = stream.kick
    report = Report(channel_fd, login["dialogue"] != 0)
    try:
        _serve(stream, report, login, settings, options, enter, confine)
    except SessionEnd as ended:
        report.close_reason = ended.reason
    except Exception as error:
        report.close_reason, report.fault = "fault", _described(error)
    # Right behind the last reply: a front that relays passes on both at once.
    waits = stream.adopted and stream.half_close()
    status = 0 if report.send_totals(stream.octets_sent) else EXIT_UNREPORTED
    if waits:
        stream.wait_for_end()
    # Not adopted: the client is the front's still, which answers and goes on as soon as we are gone.
    return status, stream, report


def _serve(
    stream: Stream,
    report: Report,
    login: dict[str, Any],
    settings: SessionSettings,
    options: opening.Options,
    enter: Enter,
    confine: Callable[[], object],
) -> None:
    """
    Do everything between the fork and the totals; the report says how it ended.

    First it opens the maildrop, or learns what to refuse it with, then it serves. Two functions would cost
    every session 4 pages more (tests/processes/test_costs.py).
    """
    if login["removal"]:
        options = options.with_removal(login["removal"])
    speech = None  # as long as it is plain English in ASCII
    if login["utf8"] or login["language"]:
        speech = _speech(settings, login["language"], login["utf8"] != 0)
    directory, found, opened, refusal = -1, None, None, UNAVAILABLE
    try:
        directory = enter(login, settings)
        confine()
        if settings.lock:
            lock.lock(directory, settings.lock_wait_s)
        # The short way knows English only; who chose another language goes the long one.
        if options.cache and not report.dialogue and not login["language"]:
            started = time.monotonic()
            found = hit.look(directory, options.max_messages, options.boot_id)
            report.cache_us = int((time.monotonic() - started) * 1_000_000)
        if found is None:
            opened = opening.open_maildrop(directory, options)
    except credentials.MaildirAbsent:
        opened = opening.absent_maildrop()
    except errors.MaildropInUse:
        refusal = IN_USE
        report.close_reason = "in_use"
    except (errors.MaildropUnavailable, credentials.CredentialsRefused, OSError) as error:
        report.close_reason, report.fault = "unavailable", _described(error, login["maildir"])
        if directory >= 0:
            # Before the -ERR (RFC 1939 §4): this process lives on until its client has read that.
            lock.unlock(directory)
    try:
        unread = report.serving(login["pipelined"] != 0)
        stream.adopt()
        if found:
            stream.send(GREETING)
            _poll(stream, report, directory, found, unread, options, settings, speech)
        elif opened:
            stream.send(speech.said(GREETING) if speech else GREETING)
            _converse(stream, report, opened, unread, settings, speech)
        else:
            signals.block_ending()  # the reason is known already
            _say_last(stream, speech.said(refusal) if speech else refusal)
    finally:
        if directory >= 0:
            os.close(directory)


def _poll(
    stream: Stream,
    report: Report,
    directory: int,
    found: Hit,
    unread: bytes,
    options: opening.Options,
    settings: SessionSettings,
    speech: Speech | None,
) -> None:
    """Serve a maildrop that has not changed: the short way as far as it goes, then the long one."""
    report.cache, report.cache_reason, report.messages, report.octets = opening.HIT, "unchanged", *found[:2]
    more = None
    try:
        more = poll.answer(stream, found, unread)
    finally:
        if more is None:
            # QUIT, or another end: nothing was marked or retrieved, so UPDATE has nothing to do.
            # The lock goes before the reply: who reads the reply may log in again at once.
            signals.block_ending()
            os.close(found[-1])
            lock.unlock(directory)
    if more is None:
        report.close_reason = "quit"
        _say_last(stream, BYE)
    else:
        try:
            opened = opening.opened_by_hit(directory, options, found)
        except errors.MaildropUnavailable as error:
            lock.unlock(directory)
            _give_up(stream, report, error)
        else:
            _converse(stream, report, opened, more, settings, speech)


def _converse(
    stream: Stream,
    report: Report,
    opened: Opened,
    unread: bytes,
    settings: SessionSettings,
    speech: Speech | None,
) -> None:
    """Serve an open maildrop to its end."""
    speech = speech or _speech(settings)
    refuse_utf8 = settings.utf8_headers == "refuse" and not speech.utf8
    try:
        report.opened(opened)
        announced = policies(settings.login_delay_s, settings.expire_retrieved_days)
        Conversation(stream, report, opened, speech, refuse_utf8, announced).converse(unread)
    except errors.MaildropUnavailable as error:
        # A folder is gone, or the statcache was damaged: whatever came next would be a guess.
        # As after QUIT, the lock goes before the reply.
        opened.close()
        _give_up(stream, report, error, speech)
    finally:
        # However it ended: what was learned about sizes is kept, and the lock goes.
        signals.block_ending()
        opened.close()


def _give_up(stream: Stream, report: Report, error: Exception, speech: Speech | None = None) -> None:
    report.close_reason, report.fault = "unavailable", _described(error)
    signals.block_ending()
    _say_last(stream, speech.said(UNAVAILABLE) if speech else UNAVAILABLE)


def _say_last(stream: Stream, octets: bytes) -> None:
    """Say the last words to a client. It may be gone by now, which changes nothing about how this ends."""
    try:
        stream.send(octets)
        stream.flush()
    except SessionEnd:
        return


def _speech(settings: SessionSettings, tag: str = "", utf8: bool = False) -> Speech:
    """What the client understands; it goes on as it was before the login."""
    return Speech(Languages(languages.FILES, settings.language), tag, utf8)


def maildrop_options(settings: SessionSettings, boot_id: bytes) -> opening.Options:
    """Return how maildrops are opened: made once, in the broker, for all sessions to come."""
    return opening.Options(
        cache=settings.statcache,
        max_messages=settings.max_messages,
        move_to_cur=settings.move_to_cur,
        boot_id=boot_id,
        expire_days=settings.expire_retrieved_days,
        removal=settings.removal,
        audit=settings.log_removals,
    )


def _described(error: Exception, maildir: bytes = b"") -> str:
    """Say for the log what is wrong, and where: the jail hides from an error in the Maildir where that is."""
    text = str(error)
    if isinstance(error, OSError) and isinstance(error.filename, bytes):
        text = f"{error.strerror} ({printable(error.filename)})"
    elif maildir and isinstance(error, errors.MaildropUnavailable):
        text = f"{error} ({printable(maildir)})"
    return f"{type(error).__name__}: {text}"[:500]

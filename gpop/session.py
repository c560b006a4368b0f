"""
PROCESS: the session. Forked from the broker; becomes the mail user, jailed in the maildrop.

Speaks TRANSACTION and UPDATE with blocking calls, then ends. Until `become_user` returns
this runs as root, and touches nothing but the account it was given. What a client asks for
is answered by `poll` as long as that is the usual little, and else by `conversation`.
"""

from __future__ import annotations

import os
import time

from gpop import poll, signals
from gpop.conversation import BYE, Conversation
from gpop.maildrop import hit, maildir, opening
from gpop.pop3 import wire
from gpop.privsep import credentials, messages
from gpop.report import Report
from gpop.stream import SessionEnd, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gpop.config import SessionSettings
    from gpop.maildrop.hit import Hit

    BecomeUser = Callable[[int, int, list[int], bytes, bytes, str, tuple[int, int]], int]

# Exit status of a session whose front was gone when it ended.
EXIT_UNREPORTED = 3

GREETING = wire.ok("maildrop locked and ready")
UNAVAILABLE = wire.err("The maildrop can't be used now, please try again later", "SYS/TEMP")
IN_USE = wire.err("The maildrop is in use by another session", "IN-USE")


def run(
    octets: bytes,
    client: int,
    channel_fd: int,
    settings: SessionSettings,
    options: opening.Options,
    become: BecomeUser = credentials.become_user,
    closerange: Callable[[int, int], object] = os.closerange,
    end: Callable[[int], object] = os._exit,
) -> None:
    """
    Be the session of a login, the SERVE frame in `octets`, in a process just forked; never returns.

    Takes over both descriptors. The exit status is 0 if the front was told how it ended,
    else one of EXIT_…; the broker logs those. What can't be taken back is in the last three
    parameters: giving up root, closing others' descriptors, and the end. `rehearsal` has other ones.
    """
    status = 1
    try:
        login = messages.fields_of(octets, messages.SERVE)
        stream = Stream(client, settings.takeover_after_s)
        signals.set_wakeup_fd(-1)
        signals.actions.clear()
        signals.actions[signals.TERM] = stream.end
        signals.actions[signals.USR1] = stream.end_if_silent
        # Every descriptor above 2 but our two: nobody else's may reach the mail user.
        low, high = (client, channel_fd) if client < channel_fd else (channel_fd, client)
        closerange(3, low)
        closerange(low + 1, high)
        closerange(high + 1, 1 << 20)
        report = Report(channel_fd, login["dialogue"] != 0)
        try:
            _serve(stream, report, login, settings, options, become)
        except SessionEnd as ended:
            report.close_reason = ended.reason
        except Exception as error:
            report.close_reason, report.fault = "fault", _described(error)
        status = 0 if report.send_totals(stream.octets_sent) else EXIT_UNREPORTED
        if stream.adopted:
            stream.say_goodbye()
        # Else the client is the front's still, which answers and goes on as soon as we are gone.
    finally:
        end(status)


def _serve(
    stream: Stream,
    report: Report,
    login: dict[str, Any],
    settings: SessionSettings,
    options: opening.Options,
    become: BecomeUser,
) -> None:
    """Do everything between the fork and the totals; the report says how it ended."""
    directory, opened, found, refusal = -1, None, None, UNAVAILABLE
    try:
        directory = _enter(login, settings, become)
        if settings.lock:
            maildir.lock(directory, settings.lock_wait_s)
        if options.cache and not report.dialogue:
            started = time.monotonic()
            found = hit.look(directory, options.max_messages, options.boot_id)
            report.cache_us = int((time.monotonic() - started) * 1_000_000)
        if found is None:
            opened = opening.open_maildrop(directory, options)
    except credentials.MaildirAbsent:
        opened = opening.absent_maildrop()
    except maildir.MaildropInUse:
        refusal = IN_USE
        report.close_reason = "in_use"
    except (maildir.MaildropUnavailable, credentials.CredentialsRefused, OSError) as error:
        report.close_reason, report.fault = "unavailable", _described(error)
        if directory >= 0:
            # Before the -ERR (RFC 1939 §4): this process lives on until its client has read that.
            maildir.unlock(directory)
    unread = report.serving()
    stream.adopt()
    if found:
        stream.send(GREETING)
        _poll(stream, report, directory, found, unread, options)
    elif opened:
        stream.send(GREETING)
        _converse(stream, report, opened, unread)
    else:
        stream.send(refusal)
        stream.flush()
    if directory >= 0:
        os.close(directory)


def _poll(
    stream: Stream, report: Report, directory: int, found: Hit, unread: bytes, options: opening.Options
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
            maildir.unlock(directory)
    if more is None:
        report.close_reason = "quit"
        try:
            stream.send(BYE)
            stream.flush()
        except SessionEnd:
            return  # the QUIT was received, that is what counts
    else:
        try:
            opened = opening.opened_by_hit(directory, options, found)
        except maildir.MaildropUnavailable as error:
            maildir.unlock(directory)
            _give_up(stream, report, error)
        else:
            _converse(stream, report, opened, more)


def _converse(stream: Stream, report: Report, opened: opening.Opened, unread: bytes) -> None:
    """Serve an open maildrop to its end."""
    try:
        report.opened(opened)
        Conversation(stream, report, opened).converse(unread)
    except maildir.MaildropUnavailable as error:
        # A folder is gone, or the statcache was damaged: whatever came next would be a guess.
        # As after QUIT, the lock goes before the reply.
        opened.close()
        _give_up(stream, report, error)
    finally:
        # However it ended: what was learned about sizes is kept, and the lock goes.
        signals.block_ending()
        opened.close()


def _give_up(stream: Stream, report: Report, error: Exception) -> None:
    report.close_reason, report.fault = "unavailable", _described(error)
    stream.send(UNAVAILABLE)
    stream.flush()


def maildrop_options(settings: SessionSettings, boot_id: bytes) -> opening.Options:
    """Return how maildrops are opened: made once, in the broker, for all sessions to come."""
    return opening.Options(
        cache=settings.statcache,
        max_messages=settings.max_messages,
        move_to_cur=settings.move_to_cur,
        boot_id=boot_id,
    )


def _enter(login: dict[str, Any], settings: SessionSettings, become: BecomeUser) -> int:
    """Become the mail user (where there is root to give up); returns the Maildir's descriptor."""
    if os.geteuid() != 0:
        return credentials.open_own_maildir(login["uid"], login["home"], login["maildir"])
    return become(
        login["uid"],
        login["gid"],
        login["groups"],
        login["home"],
        login["maildir"],
        settings.jail,
        (settings.first_valid_uid, settings.first_valid_gid),
    )


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]

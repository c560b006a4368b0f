"""
PROCESS: auth. Root; decides who a login is.

Takes LOGIN frames from fronts, each with the client's stream and one end of the session
channel, has `deciding` decide them, and answers: a refusal goes to the front on the
session channel, an accepted login with both descriptors to the broker. It holds the two
descriptors as long as it decides and closes them whatever happens. One poll loop, which
never waits for a front, a checker, PAM or a file system of a user's; passwords live here
and in checkers, in no other process of root's.

What executes as root here: auth.*, accounts.*, privsep.messages, privsep.channel,
privsep.shortage, events, tally, signals, programs (its settings), and the PAM and NSS modules of the
system. It does not know POP3 and reads no octet of a client's stream.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

from gpop import events
from gpop.accounts.account import SYS_PERM, SYS_TEMP, Accepted, Refused, Verdict
from gpop.accounts.addresses import Networks
from gpop.accounts.maps.virtualusers import VirtualUsers
from gpop.accounts.sources import Source
from gpop.auth import starting
from gpop.auth.attempt import Attempt
from gpop.auth.deciding import Decider
from gpop.auth.login import GONE, VERIFIED, Login, peer_of
from gpop.config import AuthSettings
from gpop.privsep import channel, messages
from gpop.privsep.shortage import Shortage
from gpop.programs import read_settings
from gpop.tally import Tally

# Accepted logins that may wait for a broker which does not read for a moment.
MAX_OUTBOX = 256
MAX_LOGIN_OCTETS = 4096  # a LOGIN frame with all its fields as long as they may be
# Descriptors that are not a login's: standard ones, fronts, libraries, checkers' pipes.
SPARE_DESCRIPTORS = 64
MAX_PENDING = 4096


class Auth:
    """The process: its conversations with the broker and the fronts, and its loop."""

    def __init__(
        self,
        settings: AuthSettings,
        sources: list[Source],
        virtual: VirtualUsers,
        control: socket.socket,
        log: events.Log,
    ) -> None:
        self.log = log
        self.shortage = Shortage(log)
        self.broker: socket.socket | None = control
        self.fronts: dict[int, socket.socket] = {}
        self.front_pids: dict[int, int] = {}  # by the descriptor of its login socket, as the broker says
        self.draining = False
        self.drain_at_once = False
        # Who may say whom they speak for; see `login.peer_of`.
        self.spokesmen = Networks([*settings.proxy_networks, *settings.xclient_networks])
        # Frames for the broker; with the login that is handed over, if one is.
        self._outbox: deque[tuple[bytes, Login | None]] = deque()
        self._broker_busy = False
        self._poller = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._wakeup, wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        own = {control.fileno(), self._poller.fileno(), self._wakeup, wakeup_writer, *_descriptors_of(log)}
        self.decider = Decider(
            settings,
            sources,
            log,
            self.answer,
            self._watch_checker,
            self._unwatch,
            keep=starting.library_descriptors(own),
            max_pending=_max_pending(settings),
            virtual=virtual,
        )
        signal.set_wakeup_fd(wakeup_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        # The broker says when to drain; a terminal or a service manager tells the broker.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda _number, _frame: self.drain(at_once=False))

    # The loop

    def run(self) -> None:
        """Decide logins until the broker wants no more of it and the last one is answered."""
        control = self.broker
        assert control is not None
        control.setblocking(False)
        self._watch(control.fileno(), self._control_readable)
        self._watch(self._wakeup, self._woken)
        channel.send(control, messages.encode(messages.READY))
        while not self._ended():
            for fd, _ in self._poller.poll(self._poll_timeout_s()):
                # A handler may have closed what a later one of this round was for.
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler()
            self.decider.tick(time.monotonic())
            if self.log.tally is not None:
                self._count(self.log.tally)
        self.decider.checks.kill_all()

    def _count(self, tally: Tally) -> None:
        decider = self.decider
        tally.set(("undecided_logins",), len(decider.pending))
        tally.set(("running_checks",), len(decider.checks))
        tally.set(("penalised_sources",), len(decider.penalties))
        tally.set(("auth_cache_entries",), len(decider.cache) if decider.cache is not None else 0)

    def _ended(self) -> bool:
        if self.broker is None:
            return True
        if self.decider.pending or self._outbox or not self.draining:
            return False
        return self.drain_at_once or not self.fronts

    def _poll_timeout_s(self) -> float:
        due = self.decider.due_s()
        return -1 if due is None else max(0.0, due - time.monotonic())

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poller.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._handlers[fd]
        self._poller.unregister(fd)

    def _watch_checker(self, fd: int) -> None:
        self._watch(fd, lambda: self.decider.checks.readable(fd, time.monotonic()))

    def _woken(self) -> None:
        os.read(self._wakeup, 512)  # if there is more, we are woken once more
        self.decider.checkers_ended(time.monotonic())

    # The broker

    def _control_readable(self) -> None:
        if self._outbox:
            self._send_outbox()
        if self.broker is None:
            return
        try:
            frame, fds = channel.receive(self.broker)
        except BlockingIOError:
            return
        except channel.ShortOfDescriptors as short:
            self._tell_broker(self.shortage.lost_from_broker(short.octets))
            return
        except (channel.ChannelClosed, messages.BadFrame, OSError):
            self._broker_gone()
            return
        if frame.kind == messages.ATTACH:
            self._attach(fds[0], frame.fields["front"])
        elif frame.kind == messages.ALIVE:
            if self.log.tally is not None:
                self.log.tally.answer(time.monotonic())
            self._tell_broker(messages.encode(messages.ALIVE))
        elif frame.kind == messages.LOG:
            self.log.replace(fds[0])
        elif frame.kind == messages.DRAIN:
            self.drain(at_once=bool(frame.fields["at_once"]))
        else:
            channel.close_all(fds)
            self.log.write("frame_rejected", "error", sender="broker", problem=f"{frame!r} is not for auth")

    def _attach(self, fd: int, front_pid: int) -> None:
        """Take over a front's login socket; it has one, and another one comes only when that was lost."""
        for old, pid in tuple(self.front_pids.items()):
            if pid == front_pid:
                self._end_front(self.fronts[old])
        front = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
        front.setblocking(False)
        self.fronts[fd], self.front_pids[fd] = front, front_pid
        self._watch(fd, lambda: self._front_readable(front))

    def drain(self, at_once: bool) -> None:
        """End when what is pending is answered and, unless `at_once`, the last front has gone."""
        self.draining = True
        self.drain_at_once = self.drain_at_once or at_once

    def _broker_gone(self) -> None:
        """Nobody is left to serve an accepted login."""
        assert self.broker is not None
        self._unwatch(self.broker.fileno())
        self.broker.close()
        self.broker = None
        while self._outbox:
            login = self._outbox.popleft()[1]
            if login:
                self._not_served(login)
        self.decider.give_up(Refused(SYS_TEMP, "broker_gone"))
        self.drain(at_once=True)

    def _tell_broker(self, octets: bytes, login: Login | None = None) -> None:
        """Send the broker a frame in its turn, with the descriptors of an accepted login if there is one."""
        self._outbox.append((octets, login))
        self._send_outbox()

    def _send_outbox(self) -> None:
        while self._outbox and self.broker is not None:
            octets, login = self._outbox[0]
            try:
                channel.send(self.broker, octets, login.descriptors() if login else ())
            except BlockingIOError:
                self._wait_for_broker(True)
                return
            except OSError:
                self._broker_gone()
                return
            self._outbox.popleft()
            if login:
                login.close()
        self._wait_for_broker(False)

    def _wait_for_broker(self, busy: bool) -> None:
        """Be woken when the broker reads again, or no more."""
        if self.broker is not None and busy != self._broker_busy:
            self._broker_busy = busy
            events_wanted = select.EPOLLIN | select.EPOLLOUT if busy else select.EPOLLIN
            self._poller.modify(self.broker.fileno(), events_wanted)

    # The fronts

    def _front_readable(self, front: socket.socket) -> None:
        """Take one login: one, so that a front in a hurry leaves the others their turn."""
        try:
            frame, fds = channel.receive(front, MAX_LOGIN_OCTETS)
        except BlockingIOError:
            return
        except channel.ShortOfDescriptors:
            # The front sees that the session channel has closed, and refuses the login with [SYS/TEMP].
            self.shortage.lost("front", "a login")
            return
        except channel.ChannelClosed:
            self._end_front(front)
            return
        except (messages.BadFrame, OSError) as error:
            # Told to the broker: a front to which nobody listens is alive, and could serve nobody.
            self._end_front(front, str(error))
            return
        try:
            if frame.kind not in (messages.LOGIN, messages.RELAYED_LOGIN):
                raise messages.BadFrame(f"{frame!r} is not for auth")
            channel.check_login_descriptors(*fds)
            fields = frame.fields
            # With a relay the session gets an end of it; whom it is for the client's own stream says.
            stream = fds[2 if frame.kind == messages.RELAYED_LOGIN else 0]
            peer = peer_of(stream, fields["peer"], self.spokesmen)
            login = Login(fields, *fds[:2])
        except messages.BadFrame as error:
            channel.close_all(fds)
            self._end_front(front, str(error))
            return
        for fd in fds[2:]:
            channel.close_stream(fd)
        received_s = fields["received_ms"] / 1000
        attempt = Attempt(fields["name"], fields["password"], fields["peer"], received_s, front, login)
        attempt.prepared = fields["prepared_name"], fields["prepared_password"]
        attempt.local = fields["local"]
        attempt.peer_is_verified = peer == VERIFIED
        now = time.monotonic()
        if peer == GONE:
            attempt.arrived_s = now
            self.answer(attempt, Refused(SYS_TEMP, "client_gone"))
        else:
            self.decider.submit(attempt, now)

    def _end_front(self, front: socket.socket, problem: str = "") -> None:
        """End the conversation with a front: it is gone, or not to be believed and to be replaced."""
        front_pid = self.front_pids.pop(front.fileno())
        if problem:
            self.log.write("frame_rejected", "error", sender="front", pid=front_pid, problem=problem)
            self._tell_broker(messages.encode(messages.CUT_OFF, front=front_pid))
        self._unwatch(front.fileno())
        del self.fronts[front.fileno()]
        channel.close_all([front.detach()])
        for attempt in self.decider.abandon(front):
            attempt.carried.end()

    # Answers

    def answer(self, attempt: Attempt, verdict: Verdict) -> None:
        """Send the verdict of an attempt to whom it concerns, and give up its descriptors."""
        login: Login = attempt.carried
        if isinstance(verdict, Accepted):
            verdict = self._accept(attempt, login, verdict) or verdict
        if isinstance(verdict, Refused):
            login.tell(_refusal(attempt, verdict))
            login.end()

    def _accept(self, attempt: Attempt, login: Login, verdict: Accepted) -> Refused | None:
        """Tell the front, then the broker; returns why it can't be, instead."""
        if self.broker is None or len(self._outbox) >= MAX_OUTBOX:
            return Refused(SYS_TEMP, "broker_gone" if self.broker is None else "broker_busy")
        account = verdict.account
        accepted = messages.encode(
            messages.ACCEPTED,
            user=events.printable(attempt.name),
            account=events.printable(account.name, messages.MAX_NAME_OCTETS),
            source=verdict.source,
            auth_us=_auth_us(attempt),
            dialogue=int(verdict.dialogue),
        )
        if verdict.dialogue:
            login.for_session["dialogue"] = 1
        try:
            serve = messages.encode(
                messages.SERVE,
                login_id=login.login_id,
                account=account.name,
                uid=account.uid,
                gid=account.gid,
                groups=account.groups,
                home=account.home,
                maildir=account.maildir,
                removal=verdict.removal,
                peer=attempt.peer,
                received_ms=int(attempt.received_s * 1000),
                **login.for_session,
            )
        except messages.BadFrame as error:
            refused = Refused(SYS_PERM, "account_too_large", verdict.source, str(error))
            self.log.write("auth_fault", "error", reason=refused.reason, detail=refused.detail)
            return refused
        if login.tell(accepted):
            self._tell_broker(serve, login)
        else:
            login.end()  # the front has gone
        return None

    def _not_served(self, login: Login) -> None:
        """The broker went away with an accepted login still to be handed over."""
        refusal = Refused(SYS_TEMP, "broker_gone")
        fields = {"code": refusal.code, "reason": refusal.reason, "user": "", "source": "", "auth_us": 0}
        login.tell(messages.encode(messages.REFUSED, **fields))
        login.end()


def _refusal(attempt: Attempt, verdict: Refused) -> bytes:
    return messages.encode(
        messages.REFUSED,
        code=verdict.code,
        reason=verdict.reason,
        user=events.printable(attempt.name),
        source=verdict.source,
        auth_us=_auth_us(attempt),
    )


def _auth_us(attempt: Attempt) -> int:
    """How long the decision took: its waiting included, but not the wait for a refusal's fixed time."""
    return int(((attempt.decided_s or time.monotonic()) - attempt.arrived_s) * 1e6)


def _descriptors_of(log: events.Log) -> set[int]:
    return {log.fd, log.socket.fileno()} if log.socket else {log.fd}


def _max_pending(settings: AuthSettings) -> int:
    """Let descriptors for logins run out before the kernel's limit does: two each."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = (limit - SPARE_DESCRIPTORS - 2 * settings.max_checks) // 2 - MAX_OUTBOX
    return max(1, min(MAX_PENDING, room))


def main(arguments: list[str]) -> int:
    """Run as auth, started by the broker (`supervision.Generation.start_process`)."""
    options = dict(argument[2:].partition("=")[::2] for argument in arguments)
    settings = AuthSettings(**read_settings(int(options["settings-fd"])))
    log = events.log_of("auth", options)
    try:
        control_fd = int(options["control-fd"])
        tally_fds = [int(options["tally-fd"])] if "tally-fd" in options else []
        starting.clean_surroundings({control_fd, *_descriptors_of(log), *tally_fds})
        for fd in tally_fds:
            log.tally = Tally(fd, "auth")
        sources = starting.build_sources(settings, log)
        virtual = starting.build_virtual_users(settings, log)
        auth = Auth(settings, sources, virtual, socket.socket(fileno=control_fd), log)
        starting.forbid_reading()
        gc.freeze()
        kinds = [source.kind for source in sources]
        log.write("auth_started", pid=os.getpid(), sources=kinds, cache=settings.cache_enabled)
        auth.run()
    except starting.StartRefused as error:
        log.write("process_fault", "error", problem=str(error))
        return 1
    except Exception as error:
        # The one outermost handler. No traceback: frames hold passwords.
        log.write("process_fault", "error", problem=events.place(error))
        return 1
    return 0

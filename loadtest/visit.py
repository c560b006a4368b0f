"""
One login to one maildrop, every answer of which is compared with what the ledger says.

Knows POP3 and the ledger, nothing of locust, and not why somebody wants a session: that is what
`behaviours` are for. Executed by locust's processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from loadtest.client import CHECK, CUT_OFF, Answer, Client, CutOff, Failed, Failure, Report, Server, ok, shown
from loadtest.ledger import UNSURE, Maildrop, Message, Tally, Wrong
from loadtest.mail import byte_stuffed, digest, on_the_wire


class Visit:
    """
    One login, from the connection to its end; `with` closes it, and so removes nothing without QUIT.

    Attributes:
        messages: those of the session, in order; message-number 1 is the first.
    """

    def __init__(
        self, behaviour: str, maildrop: Maildrop, server: Server, report: Report, tally: Tally
    ) -> None:
        self.maildrop = maildrop
        self.messages: list[Message] = []
        self.client = Client(server, report)
        self._server = server
        self._behaviour = behaviour
        self._report = report
        self._tally = tally
        self._marked: list[Message] = []
        self._retrieved: list[Message] = []
        self._has_logged_in = False
        self._is_open = False  # whether the log will say how this session has ended, and has not been counted

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self.client.close()
        if isinstance(error, CutOff):
            self._tally.cut_off.append((time.time(), int(self._has_logged_in)))
            self._ended(UNSURE)
        self._ended("disconnect")

    # Logging in

    def log_in(self, capa: bool = False, small_buffer: bool = False) -> None:
        """Connect and log in; from then on the session sees the maildrop as it was at that moment."""
        account = self.maildrop.account
        self.client.connect(small_buffer)
        if capa:
            self.client.ask("CAPA", "CAPA", _has_capabilities, multi_line=True)
        self.client.ask("USER", f"USER {account.name}")
        with self.maildrop.login_gate:
            self.maildrop.wait_for_clock()
            outcome = self.maildrop.next_outcome()
            try:
                self.client.ask(f"PASS ({outcome})", f"PASS {account.password}")
            except BaseException:  # a user who is stopped here knows as little as one whose connection breaks
                self._tally.cache[UNSURE] += 1
                self.maildrop.login_failed()
                raise
            self.messages = self.maildrop.logged_in()
        self._tally.cache[outcome] += 1
        self._tally.sessions[self._behaviour] += 1
        self._is_open = self._has_logged_in = True

    def guess(self, password: str) -> None:
        """Try a password that is wrong; to be refused is what is right."""
        self.client.connect()
        self.client.ask("USER", f"USER {self.maildrop.account.name}")
        try:
            self.client.ask("PASS (refused)", f"PASS {password}", _is_refused)
        except BaseException:  # as above
            self._tally.cache[UNSURE] += 1
            raise
        self._tally.refused += 1

    # Asking

    def stat(self) -> None:
        """Ask for the drop listing: number and octets have to be right."""
        expected = b"+OK %d %d" % (len(self.messages), sum(each.octets for each in self.messages))

        def verify(answer: Answer) -> None:
            if answer.status.split()[:3] != expected.split():
                raise Wrong(f"{shown(answer.status)!r} should be {shown(expected)!r}")

        self.client.ask("STAT", "STAT", verify)

    def list(self) -> None:
        """Ask for the scan listing: the octets of every message have to be right."""
        self._listing("LIST", [b"%d" % each.octets for each in self.messages])

    def uidl(self) -> None:
        """Ask for the unique-id listing: no unique-id may ever change."""
        self._listing("UIDL", [each.base.encode() for each in self.messages])

    def _listing(self, command: str, expected: Sequence[bytes]) -> None:
        def verify(answer: Answer) -> None:
            ok(answer)
            lines = answer.lines()
            for number, (line, fact) in enumerate(zip(lines, expected, strict=False), start=1):
                right = b"%d %b" % (number, fact)
                if line != right:
                    raise Wrong(f"{shown(line)!r} should be {shown(right)!r}")
            if len(lines) != len(expected):
                raise Wrong(f"{len(lines)} messages; there are {len(expected)}")

        self.client.ask(command, command, verify, multi_line=True)

    def retr(self, message: Message) -> None:
        """Retrieve a message: it has to be what was delivered, octet for octet."""

        def verify(answer: Answer) -> None:
            ok(answer)
            if len(answer.body) != message.octets:
                raise Wrong(f"{len(answer.body)} octets; {message.base} has {message.octets}")
            if digest(answer.body) != message.digest:
                raise Wrong(f"not the octets with which {message.base} was delivered")

        self.client.ask("RETR", f"RETR {self._number(message)}", verify, multi_line=True)
        self._retrieved.append(message)

    def dele(self, message: Message) -> None:
        """Mark a message as deleted."""
        self.client.ask("DELE", f"DELE {self._number(message)}")
        self._marked.append(message)

    def _number(self, message: Message) -> int:
        return self.messages.index(message) + 1

    # Leaving

    def quit(self) -> None:
        """Send QUIT, wait for its answer, close."""
        try:
            self.client.ask("QUIT", "QUIT")
        except BaseException:
            self._ended(UNSURE)
            self.maildrop.update_failed(self._marked, self._retrieved)
            raise
        self.client.close()
        self._updated()

    def quit_and_close(self) -> None:
        """Send QUIT, and close without waiting for the answer."""
        self.client.say("QUIT")
        self.client.close()
        self._updated()

    def _updated(self) -> None:
        self._ended("quit")
        self.maildrop.updated(self._marked, self._retrieved)
        self._tally.removed += len(self._marked)
        for message in self._retrieved:
            count = self._tally.received_again if message.received else self._tally.received
            count[self._behaviour] += 1
            message.received = True

    def wait_until_settled(self) -> None:
        """After `quit_and_close`: wait until the server has done what it was asked for."""
        name, quit_at, started = "after QUIT: UPDATE is done", time.time(), time.perf_counter()
        problem = ""
        try:
            self.maildrop.wait_until_settled()
        except Wrong as wrong:
            self.maildrop.update_failed(self._marked, self._retrieved)
            problem = str(wrong)
        ms = (time.perf_counter() - started) * 1000
        if problem and self._server.is_killed:
            # The session was killed before it had read QUIT, or amid UPDATE: each message is there, or not.
            self._report(CUT_OFF, name, ms, 0)
            self._tally.cut_off.append((quit_at, 1))
            raise Failed(problem)
        failure = Failure(problem, self.client.dialogue()) if problem else None
        self._report(CHECK, name, ms, 0, failure)
        if failure:
            raise Failed(failure.what)

    def leave_within_retr(self, message: Message) -> None:
        """Retrieve half of a message, and drop the connection."""
        sent = byte_stuffed(on_the_wire(self.maildrop.file(message)))

        def verify(answer: Answer) -> None:
            ok(answer)
            if not sent.startswith(answer.body):
                raise Wrong(f"not the octets with which {message.base} was delivered")

        command = f"RETR {self._number(message)}"
        self.client.leave_within("RETR (dropped)", command, message.octets // 2, verify)

    def _ended(self, close_reason: str) -> None:
        if self._is_open:
            self._tally.close_reason[close_reason] += 1
        self._is_open = False


def _has_capabilities(answer: Answer) -> None:
    ok(answer)
    missing = {b"UIDL", b"USER"} - {line.split()[0].upper() for line in answer.lines() if line.strip()}
    if missing:
        raise Wrong(f"CAPA lacks {', '.join(shown(each) for each in sorted(missing))}")


def _is_refused(answer: Answer) -> None:
    if answer.status.startswith(b"+OK"):
        raise Wrong("a wrong password was accepted")
    if not answer.status.startswith(b"-ERR [AUTH]"):
        raise Wrong(f"a wrong password was not refused with [AUTH]: {shown(answer.status)}")

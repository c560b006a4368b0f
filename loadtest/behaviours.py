"""
How the users behave: one table, and what each of them does.

Taken from how clients are seen to behave. Each is a function of a `User`; what it asks is verified by its
`Visit`. Knows nothing of locust. Executed by locust's processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.client import Report, Server
from loadtest.ledger import Maildrop, Tally
from loadtest.visit import Visit

WRONG_PASSWORD = "123456"


@dataclass(slots=True)
class User:
    """
    One user with one maildrop, for the whole run.

    Attributes:
        seen: unique-ids that earlier sessions have fetched, as a client keeps them.
    """

    behaviour: Behaviour
    maildrop: Maildrop
    server: Server
    report: Report
    tally: Tally
    seen: set[str] = field(default_factory=set)

    def visit(self) -> Visit:
        """Return a session that has not begun yet."""
        return Visit(self.behaviour.name, self.maildrop, self.server, self.report, self.tally)

    def act(self) -> int:
        """Do once what this user does; returns the octets received. Raises Failed."""
        return self.behaviour.act(self)


def poll(user: User) -> int:
    """Look for new mail, and leave everything as it is."""
    with user.visit() as visit:
        visit.log_in()
        visit.stat()
        visit.uidl()
        visit.quit()
        return visit.client.octets


def read(user: User) -> int:
    """Fetch what was not fetched before, by unique-id, and keep it on the server."""
    with user.visit() as visit:
        visit.log_in(capa=True)
        visit.stat()
        visit.uidl()
        new = [message for message in visit.messages if message.base not in user.seen]
        if new:
            visit.list()
        for message in new:
            visit.retr(message)
        visit.quit()
        user.seen = {message.base for message in visit.messages}
        return visit.client.octets


def drain(user: User) -> int:
    """Fetch everything, and remove it."""
    with user.visit() as visit:
        visit.log_in(capa=True)
        visit.stat()
        if visit.messages:
            visit.list()
            visit.uidl()
        for message in visit.messages:
            visit.retr(message)
            visit.dele(message)
        visit.quit()
        return visit.client.octets


def lose_patience(user: User) -> int:
    """Drop the connection in the middle of the largest message."""
    with user.visit() as visit:
        visit.log_in(small_buffer=True)
        visit.stat()
        visit.list()
        visit.leave_within_retr(max(visit.messages, key=lambda message: message.octets))
        return visit.client.octets


def log_in_twice(user: User) -> int:
    """
    Look, and at once log in again to fetch, and to remove what was fetched the last time.

    The answer to QUIT is not waited for.
    """
    with user.visit() as first:
        first.log_in()
        first.stat()
        first.quit_and_close()
    with user.visit() as second:
        second.log_in()
        second.stat()
        second.uidl()
        second.list()
        for message in second.messages:
            (second.dele if message.base in user.seen else second.retr)(message)
        second.quit_and_close()
        user.seen = {message.base for message in second.messages}
        second.wait_until_settled()
        return first.client.octets + second.client.octets


def take_one(user: User) -> int:
    """Take one message, without CAPA, with commands that end in a bare LF."""
    with user.visit() as visit:
        visit.client.line_end = b"\n"
        visit.log_in()
        visit.stat()
        if visit.messages:
            visit.list()
            visit.retr(visit.messages[0])
            visit.dele(visit.messages[0])
        visit.quit()
        return visit.client.octets


def guess(user: User) -> int:
    """Try a wrong password, and hang up."""
    with user.visit() as visit:
        visit.guess(WRONG_PASSWORD)
        return visit.client.octets


@dataclass(frozen=True, slots=True)
class Behaviour:
    """
    One kind of user.

    Attributes:
        share: of a hundred users, so many are of this kind.
        pause_min: minutes between two times, give or take a quarter.
        needs_large: there has to be a large message in the maildrop.
        gets_mail: whether the postman comes.
    """

    name: str
    share: int
    pause_min: float
    act: Callable[[User], int]
    needs_large: bool = False
    gets_mail: bool = True


BEHAVIOURS = (
    Behaviour("Poller", 40, 1, poll),
    Behaviour("Reader", 20, 2, read),
    Behaviour("Drainer", 20, 2, drain),
    Behaviour("Outlook", 8, 2, log_in_twice),
    Behaviour("Device", 5, 1, take_one),
    Behaviour("Guesser", 4, 1, guess, gets_mail=False),
    Behaviour("Impatient", 3, 2, lose_patience, needs_large=True),
)

"""
The TRANSACTION state: commands on a maildrop (RFC 1939 §5, §7), ended by QUIT, which asks for UPDATE.

Pure: asks a maildrop about its messages and marks them, never where they are; what is to be sent or removed
is a decision for the process around it. Executed by the session, as the mail user, in its jail.
"""

from __future__ import annotations

from gpop.pop3.commands import EVERY_LOGIN, TRANSACTION, Offer, capability_list, parse
from gpop.pop3.decisions import EnterUpdate, Reply, SendListing, SendMessage
from gpop.pop3.languages import Languages, Speech
from gpop.pop3.wire import err, ok

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from gpop.pop3.wire import LineError

    TransactionDecision = Reply | SendListing | SendMessage | EnterUpdate

    class Maildrop(Protocol):
        """What this state asks of `gpop.maildrop.model.Maildrop`. An index is a message-number less one."""

        @property
        def count(self) -> int: ...
        def stat(self) -> tuple[int, int]: ...
        def scan_line(self, index: int) -> bytes: ...
        def unique_id_line(self, index: int) -> bytes: ...
        def is_marked(self, index: int) -> bool: ...
        def mark_deleted(self, index: int) -> None: ...
        def unmark_all(self) -> None: ...


_NO_SUCH_MESSAGE = Reply(err("No such message"))
_MARKED = Reply(err("That message is marked as deleted"))
_DONE = Reply(ok())
# RFC 6856 §5: the code stands for a message whose header is not ASCII, before a client in ASCII mode.
_NEEDS_UTF8 = Reply(err("That message is for clients that say UTF8 before the login", "UTF8"))
# Outlook says UTF8 only after the login, where it is illegal (RFC 6856 §2). Courier humours it, so do we.
_UTF8_TOO_LATE = Reply(ok("UTF8 belongs before the login, nothing has changed"))
_MARKED_NOW = Reply(ok("marked as deleted"))
_UNMARKED = Reply(ok("no message is marked as deleted"))
_LIST = SendListing("LIST")
_UIDL = SendListing("UIDL")
_UPDATE = EnterUpdate()


class Transaction:
    """One session in the TRANSACTION state. Every line goes to `handle`; after `EnterUpdate` none is due."""

    __slots__ = ("_maildrop", "_needs_utf8", "_offer", "speech")

    def __init__(
        self,
        maildrop: Maildrop,
        offer: Offer = EVERY_LOGIN,
        speech: Speech | None = None,
        needs_utf8: Callable[[int], bool] | None = None,
    ) -> None:
        """
        `offer` is what CAPA says of logins.

        `needs_utf8` says of an index whether that message is to be refused to this client because
        its header is not ASCII (RFC 6856 §4); None where none is refused.
        """
        self._maildrop = maildrop
        self._offer = offer
        self._needs_utf8 = needs_utf8
        self.speech = speech or Speech(Languages({}))

    def handle(self, line: bytes | LineError) -> TransactionDecision:
        parsed = parse(line, TRANSACTION)
        if isinstance(parsed, Reply):
            return parsed
        keyword, arguments = parsed
        return _HANDLERS[keyword](self, *arguments)

    def _refusal(self, number: int) -> Reply | None:
        """Why `number` names no message that can be used now; None if it does."""
        if not 1 <= number <= self._maildrop.count:
            return _NO_SUCH_MESSAGE
        return _MARKED if self._maildrop.is_marked(number - 1) else None

    def _unsendable(self, number: int) -> Reply | None:
        """As `_refusal`; or that the message, or its size, is nothing for this client."""
        refusal = self._refusal(number)
        if refusal is None and self._needs_utf8 is not None and self._needs_utf8(number - 1):
            return _NEEDS_UTF8
        return refusal

    def _utf8(self) -> Reply:
        return _UTF8_TOO_LATE

    def _lang(self, wanted: bytes) -> Reply:
        return self.speech.lang(wanted)

    def _capa(self) -> Reply:
        return capability_list(self._offer)

    def _stat(self) -> Reply:
        """The drop listing: two numbers and no word after them, clients stumble over it."""
        return Reply(b"+OK %d %d\r\n" % self._maildrop.stat())

    def _list(self, number: int | None) -> Reply | SendListing:
        if number is None:
            return _LIST
        return self._unsendable(number) or Reply(b"+OK %b\r\n" % self._maildrop.scan_line(number - 1))

    def _uidl(self, number: int | None) -> Reply | SendListing:
        if number is None:
            return _UIDL
        return self._refusal(number) or Reply(b"+OK %b\r\n" % self._maildrop.unique_id_line(number - 1))

    def _retr(self, number: int) -> Reply | SendMessage:
        return self._unsendable(number) or SendMessage(number - 1, None)

    def _top(self, number: int, line_count: int) -> Reply | SendMessage:
        return self._unsendable(number) or SendMessage(number - 1, line_count)

    def _dele(self, number: int) -> Reply:
        refusal = self._refusal(number)
        if refusal is None:
            self._maildrop.mark_deleted(number - 1)
        return refusal or _MARKED_NOW

    def _rset(self) -> Reply:
        self._maildrop.unmark_all()
        return _UNMARKED

    def _noop(self) -> Reply:
        return _DONE

    def _quit(self) -> EnterUpdate:
        return _UPDATE


_HANDLERS: dict[bytes, Callable[..., TransactionDecision]] = {
    b"CAPA": Transaction._capa,
    b"UTF8": Transaction._utf8,
    b"LANG": Transaction._lang,
    b"STAT": Transaction._stat,
    b"LIST": Transaction._list,
    b"UIDL": Transaction._uidl,
    b"RETR": Transaction._retr,
    b"TOP": Transaction._top,
    b"DELE": Transaction._dele,
    b"RSET": Transaction._rset,
    b"NOOP": Transaction._noop,
    b"QUIT": Transaction._quit,
}

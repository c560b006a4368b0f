"""
What can be wrong with a maildrop or a message, as exceptions that keep the errno.

Pure. Raised by the edges of this package (and by `model` for a cache that changes under
its hands); the session turns each kind into one reply.
"""

from __future__ import annotations


class MaildropError(Exception):
    """Something is wrong with the world; `errno` is the system's own number, 0 if it had none."""

    def __init__(self, what: str, errno: int | None = 0) -> None:
        super().__init__(what)
        self.errno = errno or 0


class MaildropUnavailable(MaildropError):
    """The maildrop can't be read now. Never to be taken for an empty one."""


class MaildropInUse(MaildropError):
    """Another session holds the lock."""


class MessageVanished(MaildropError):
    """The message's file is no longer there under any name."""


class MessageUnreadable(MaildropError):
    """The message's file is there and can't be read, or is no regular file any more."""


class MessageChanged(MaildropError):
    """What is there can't be shown to be the message whose unique-id was shown."""

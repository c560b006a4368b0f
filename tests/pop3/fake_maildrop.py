"""A maildrop in memory, small and obvious; the real one is `gpop.maildrop.model.Maildrop`."""

from __future__ import annotations

from tests.pop3 import reference


class FakeMaildrop:
    """Messages as {unique-id: octets of the file}, in the order of their message-numbers."""

    def __init__(self, messages: dict[bytes, bytes]) -> None:
        self.unique_ids = list(messages)
        self.messages = list(messages.values())
        self.marked: set[int] = set()

    @property
    def count(self) -> int:
        return len(self.messages)

    def _unmarked(self) -> list[int]:
        return [index for index in range(self.count) if index not in self.marked]

    def stat(self) -> tuple[int, int]:
        sizes = [reference.octets_on_wire(self.messages[index]) for index in self._unmarked()]
        return len(sizes), sum(sizes)

    def scan_line(self, index: int) -> bytes:
        return b"%d %d" % (index + 1, reference.octets_on_wire(self.messages[index]))

    def unique_id_line(self, index: int) -> bytes:
        return b"%d %b" % (index + 1, self.unique_ids[index])

    def is_marked(self, index: int) -> bool:
        return index in self.marked

    def mark_deleted(self, index: int) -> None:
        self.marked.add(index)

    def unmark_all(self) -> None:
        self.marked.clear()

    def listing(self, kind: str) -> bytes:
        """What the process sends for SendListing."""
        line = {"LIST": self.scan_line, "UIDL": self.unique_id_line}[kind]
        status = {"LIST": b"+OK scan listing follows\r\n", "UIDL": b"+OK unique-id listing follows\r\n"}[kind]
        return status + b"".join(line(index) + b"\r\n" for index in self._unmarked()) + b".\r\n"

    def remaining(self) -> list[bytes]:
        """What UPDATE leaves."""
        return [self.unique_ids[index] for index in self._unmarked()]

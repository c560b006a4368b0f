"""
What an attack has to know and count, and what several have in common: to hold many connections, to repeat.

Counted is what was achieved, because an attack that did not happen proves nothing. Knows the ports and some
valid accounts; nothing of the server's inside. Executed by the attackers' process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from loadtest.hostile.peers import Peer, TlsPeer, address_of

NETWORK = 64  # of the attackers' addresses; honest users have another
OPENERS = 100
SWEEP_S = 1.0


@dataclass
class Attack:
    """What an attack has to know, and what it has achieved. `scale`: 1 for the numbers that are stated."""

    port: int
    tls_port: int
    accounts: list[tuple[str, str]]
    scale: float = 1.0
    achieved: Counter[str] = field(default_factory=Counter)
    under_way: asyncio.Event = field(default_factory=asyncio.Event)
    peers: set[Peer] = field(default_factory=set)

    def many(self, count: int) -> int:
        """So many as there are at this scale."""
        return max(4, round(count * self.scale))

    def forget(self, peer: Peer) -> None:
        self.peers.discard(peer)
        peer.close()

    def count_open(self) -> None:
        """At the end of the attack, before anything is closed."""
        self.achieved["open at the end"] += sum(peer.is_open() for peer in self.peers)

    def close(self) -> None:
        """Close all that the attack has left."""
        for peer in list(self.peers):
            self.forget(peer)

    # What many of them do

    async def hold(self, count: int, opener: Callable[[int], Awaitable[Peer]]) -> None:
        """Open `count` connections, and then whatever of them the server closes, again: once a second."""
        numbers = iter(range(count))
        held: dict[int, Peer | None] = {}

        async def open_some() -> None:
            for number in numbers:
                held[number] = await self._opened(number, opener)

        await asyncio.gather(*(open_some() for _ in range(min(count, OPENERS))))
        self.under_way.set()
        while True:
            await asyncio.sleep(SWEEP_S)
            for number, peer in held.items():
                if peer is None or not peer.is_open():
                    if peer:
                        self.achieved["closed by the server"] += 1
                        self.forget(peer)
                    held[number] = await self._opened(number, opener)

    async def _opened(self, number: int, opener: Callable[[int], Awaitable[Peer]]) -> Peer | None:
        try:
            peer = await opener(number)
        except OSError:
            self.achieved["not let in"] += 1
            return None
        self.peers.add(peer)
        self.achieved["connections"] += 1
        return peer

    async def repeat(self, workers: int, once: Callable[[int], Awaitable[None]]) -> None:
        """Have so many workers do something without end, each with a number of its own."""

        async def work(number: int) -> None:
            while True:
                with contextlib.suppress(OSError):
                    await once(number)
                await asyncio.sleep(0)

        working = asyncio.gather(*(work(number) for number in range(workers)))
        self.under_way.set()
        await working

    @contextlib.asynccontextmanager
    async def peer(self, number: int, tls: bool = False) -> AsyncIterator[Peer]:
        """A connection for one deed; inside TLS after its handshake."""
        peer = await self.open(number, tls)
        try:
            yield peer
        finally:
            self.forget(peer)

    async def open(self, number: int, tls: bool) -> Peer:
        """A connection that stays, until `forget`."""
        kind = TlsPeer if tls else Peer
        peer = await kind.connect(self.tls_port if tls else self.port, address_of(NETWORK, number))
        self.peers.add(peer)
        if isinstance(peer, TlsPeer):
            try:
                await peer.handshake()
            except BaseException:
                self.forget(peer)
                raise
        return peer

    async def log_in(self, peer: Peer, number: int) -> None:
        """Log in to the account with that number. Raises OSError if that can't be."""
        name, password = self.accounts[number % len(self.accounts)]
        await peer.line()
        await peer.ask(b"USER " + name.encode())
        if not (await peer.ask(b"PASS " + password.encode())).startswith(b"+OK"):
            self.achieved["logins refused"] += 1
            raise ConnectionError("not let in")
        self.achieved["logins"] += 1

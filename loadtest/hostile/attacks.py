"""
What attackers do: each scenario a coroutine, which says when it is under way and goes on until the end.

Executed by the attackers' process. What the names mean for honest users is in `scenarios`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
from collections.abc import Awaitable, Callable

from loadtest.hostile.attack import NETWORK, Attack
from loadtest.hostile.peers import HOST, Peer, address_of, client_hello

SPRAY_NETWORK = 65
ONE_ADDRESS = "127.66.0.1"
PER_ADDRESS = 50  # below server.max_connections_per_address
OCTET_EVERY_S = 3.0
BATCH = 200
SPRAYS_PER_S = 1000
SPRAY_TICK_S = 0.02
MOST_SPRAYS_AT_ONCE = 8000
ANSWER_TIMEOUT_S = 60.0
PASSWORDS = (b"123456", b"password", b"qwerty", b"letmein")
NOISE = random.Random(1939).randbytes(64 * 1024)
NOOPS = b"NOOP\r\n" * 10_000
# With each R s_client asks for another handshake of TLS 1.2, with each K for new keys of TLS 1.3.
RENEWALS = ((b"R\n", "-tls1_2"), (b"K\n", "-tls1_3"))
RENEW_EVERY_S = 0.005
MOST_DIALOGUE_OCTETS = 120


def _many_addresses(number: int) -> str:
    return address_of(NETWORK, number // PER_ADDRESS)


# Connections that say little


async def slowloris(attack: Attack) -> None:
    """2,000 connections, each on its way to a USER command that does not come to its end."""
    speaking = asyncio.create_task(_speak_slowly(attack))
    try:
        await attack.hold(attack.many(2000), lambda n: Peer.connect(attack.port, _many_addresses(n)))
    finally:
        speaking.cancel()


async def _speak_slowly(attack: Attack) -> None:
    for octets in itertools.chain([b"U", b"S", b"E", b"R", b" "], itertools.repeat(b"x")):
        for peer in list(attack.peers):
            with contextlib.suppress(OSError):
                peer.sock.send(octets)
                attack.achieved["octets"] += 1
        await asyncio.sleep(OCTET_EVERY_S)


async def idle_one_address(attack: Attack) -> None:
    """10,000 connections wanted from one address, which gets 64; the rest knocks on and on."""
    await attack.hold(attack.many(10_000), lambda _: _admitted(attack))


async def _admitted(attack: Attack) -> Peer:
    peer = await Peer.connect(attack.port, ONE_ADDRESS)
    try:
        if not (await peer.line()).startswith(b"+OK"):
            raise ConnectionError("turned away")
    except BaseException:
        peer.close()
        raise
    return peer


async def idle(attack: Attack) -> None:
    """10,500 connections from 210 addresses that keep to the limit per address, and come again."""
    await attack.hold(attack.many(10_500), lambda n: Peer.connect(attack.port, _many_addresses(n)))


async def half_open_tls(attack: Attack) -> None:
    """2,000 beginnings of TLS, of four kinds, and nothing after them."""
    hello = client_hello()
    beginnings = (b"", hello[: len(hello) // 2], hello)

    async def opener(number: int) -> Peer:
        kind = number % (len(beginnings) + 1)
        if kind == len(beginnings):
            peer = await Peer.connect(attack.port, _many_addresses(number))
            await peer.line()
            await peer.ask(b"STLS")
        else:
            peer = await Peer.connect(attack.tls_port, _many_addresses(number))
            await peer.send(beginnings[kind])
        return peer

    await attack.hold(attack.many(2000), opener)


# TLS


async def handshakes(attack: Attack) -> None:
    """A ClientHello again and again, so that the server does its part of the work and the client none."""
    hello = client_hello()

    async def once(number: int) -> None:
        if number % 4 == 0:
            async with attack.peer(number, tls=True):
                attack.achieved["handshakes"] += 1
            return
        peer = await Peer.connect(attack.tls_port, address_of(NETWORK, number))
        try:
            await peer.send(hello)
            await peer.receive()
            attack.achieved["given up"] += 1
        finally:
            peer.reset()

    await attack.repeat(attack.many(64), once)


async def renegotiation(attack: Attack) -> None:
    """Both ways to have the server compute again within one connection, by openssl s_client."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise OSError("there is no openssl")

    async def once(number: int) -> None:
        renewal, version = RENEWALS[number % 2]
        client = await asyncio.create_subprocess_exec(
            *(openssl, "s_client", "-connect", f"{HOST}:{attack.tls_port}", version),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await _renew(attack, client, renewal)
        finally:
            # At the end of its input s_client ends. Its input is closed by this, too.
            _, told = await client.communicate()
            attack.achieved["refused: no renegotiation"] += told.count(b"no renegotiation")

    await attack.repeat(attack.many(8), once)


async def _renew(attack: Attack, client: asyncio.subprocess.Process, renewal: bytes) -> None:
    assert client.stdin
    word = "renegotiations wanted" if renewal == b"R\n" else "new keys wanted"
    while client.returncode is None:
        client.stdin.write(renewal)
        await client.stdin.drain()
        attack.achieved[word] += 1
        await asyncio.sleep(RENEW_EVERY_S)


# Much said, little read


async def unread_retr(attack: Attack) -> None:
    """As many sessions as there are accounts, each with hundreds of MB on their way to nobody."""

    async def opener(number: int) -> Peer:
        peer = await attack.open(number, tls=number % 2 == 1)
        try:
            await attack.log_in(peer, number)
            await peer.send(b"RETR 1\r\n" * 1000)
        except BaseException:
            attack.forget(peer)
            raise
        return peer

    await attack.hold(attack.many(len(attack.accounts)), opener)


async def disconnects(attack: Attack) -> None:
    """A whole session's commands in one go, cut after any octet; then closed, half-closed or reset."""
    chance = random.Random(1939)
    ends: tuple[Callable[[Peer], None], ...] = (Peer.close, Peer.half_close, Peer.reset)

    async def once(number: int) -> None:
        name, password = attack.accounts[number % len(attack.accounts)]
        dialogue = f"USER {name}\r\nPASS {password}\r\nSTAT\r\nUIDL\r\nLIST\r\nRETR 1\r\nNOOP\r\nQUIT\r\n"
        async with attack.peer(number) as peer:
            await peer.send(dialogue.encode()[: chance.randrange(MOST_DIALOGUE_OCTETS)])
            if chance.random() < 0.5:
                await peer.line()
            attack.achieved["cut off"] += 1
            chance.choice(ends)(peer)

    await attack.repeat(attack.many(32), once)


def _half(
    attack: Attack,
    workers: int,
    before: Callable[[Peer], Awaitable[None]],
    after: Callable[[Peer], Awaitable[None]],
) -> Awaitable[None]:
    """Half of the workers do one thing before a login, half another one after it, again when it has ended."""

    async def once(number: int) -> None:
        async with attack.peer(number) as peer:
            if number % 2:
                await attack.log_in(peer, number)
                await after(peer)
            else:
                await before(peer)

    return attack.repeat(attack.many(workers), once)


async def commands(attack: Attack) -> None:
    """Good commands, and every answer read: as many as the server will answer."""

    async def before(peer: Peer) -> None:
        await peer.send(b"CAPA\r\n" * BATCH)
        attack.achieved["commands before login"] += (await peer.rest()).count(b"+OK Capability")

    async def after(peer: Peer) -> None:
        while True:
            await peer.send(b"NOOP\r\n" * BATCH)
            for _ in range(BATCH):
                if not await peer.line():
                    return
            attack.achieved["commands in sessions"] += BATCH

    await _half(attack, 32, before, after)


async def pipelines(attack: Attack) -> None:
    """Commands and noise by the megabyte, and no answer read."""

    async def flood(peer: Peer, octets: bytes, count: str) -> None:
        while True:
            await peer.send(octets)
            attack.achieved[count] += len(octets)

    await _half(
        attack,
        64,
        lambda peer: flood(peer, NOISE, "octets before login"),
        lambda peer: flood(peer, NOOPS, "octets in sessions"),
    )


async def endless_lines(attack: Attack) -> None:
    """Lines that never end: all of it has to be read, and nothing of it kept."""

    async def flood(peer: Peer, count: str) -> None:
        while True:
            await peer.send(b"A" * len(NOISE))
            attack.achieved[count] += len(NOISE)

    await _half(
        attack,
        32,
        lambda peer: flood(peer, "octets before login"),
        lambda peer: flood(peer, "octets in sessions"),
    )


# Passwords


async def spray_one_address(attack: Attack) -> None:
    """Many names, few passwords, one address."""
    await _spray(attack, lambda _: ONE_ADDRESS)


async def spray(attack: Attack) -> None:
    """The same from as many addresses as there are attempts."""
    await _spray(attack, lambda number: address_of(SPRAY_NETWORK, number))


async def _spray(attack: Attack, address: Callable[[int], str]) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    trying: set[asyncio.Task[None]] = set()
    attack.under_way.set()
    number = 0
    try:
        while True:
            due = int((loop.time() - started) * attack.many(SPRAYS_PER_S))
            while number < due:
                number += 1
                if len(trying) < MOST_SPRAYS_AT_ONCE:
                    task = asyncio.create_task(_try(attack, number, address(number)))
                    trying.add(task)
                    task.add_done_callback(trying.discard)
            await asyncio.sleep(SPRAY_TICK_S)
    finally:
        for task in trying:
            task.cancel()


async def _try(attack: Attack, number: int, address: str) -> None:
    """One guess, of a name that exists or of one that does not."""
    name = f"user{number % 1000:05d}".encode()
    password = PASSWORDS[number // 1000 % len(PASSWORDS)]
    try:
        peer = await Peer.connect(attack.port, address)
    except OSError:
        attack.achieved["not let in"] += 1
        return
    attack.peers.add(peer)
    attack.achieved["guesses sent"] += 1
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            greeting = await peer.line()
            if not greeting.startswith(b"+OK"):
                attack.achieved["turned away at once"] += 1
                return
            await peer.send(b"USER " + name + b"\r\nPASS " + password + b"\r\n")
            await peer.line()
            answer = await peer.line()
            attack.achieved[
                "answered " + (answer[5:].partition(b" ")[0].decode("ascii", "replace") or "by a close")
            ] += 1
    except TimeoutError:
        attack.achieved["not answered"] += 1
    except OSError:
        attack.achieved["reset"] += 1
    finally:
        attack.forget(peer)


ATTACKS: dict[str, Callable[[Attack], Awaitable[None]]] = {
    "slowloris": slowloris,
    "idle-one-address": idle_one_address,
    "idle": idle,
    "half-open-tls": half_open_tls,
    "handshakes": handshakes,
    "renegotiation": renegotiation,
    "unread-retr": unread_retr,
    "disconnects": disconnects,
    "commands": commands,
    "pipelines": pipelines,
    "endless-lines": endless_lines,
    "spray-one-address": spray_one_address,
    "spray": spray,
}

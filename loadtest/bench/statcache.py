"""
What opening a maildrop costs: hit, refresh and rebuild, by its size.

    python loadtest/bench/statcache.py [--sizes 20,1000,10000] [--rounds 7] [--folder DIR]

Prints microseconds of CPU time (best of the rounds), and for all but a hit also per message:

    hit          nothing new: what nearly every poll is
    poll         the same, with both listings asked for
    new mail     one message delivered since: list new/, append, write
    flags        one flag changed in cur/: list cur/, put together, write
    rebuild W=   no cache, octets in the names: list, sort, write
    rebuild      no cache, no sizes in the names: and read every message

Half of the messages are in new/, half in cur/. The disk is the one that DIR is on (default: where temporary
files are): fdatasync waits for it, which is why CPU time is what counts here.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpop.maildrop import opening
from gpop.maildrop.opened import Opened

BODY = (
    b"Subject: a message\nFrom: somebody@example.org\n\n" + b"A line of some length, as mail has it.\n" * 30
)
CLAIM = f",S={len(BODY)},W={len(BODY) + BODY.count(10)}"


class Bench:
    """A Maildir of `count` messages, and what is done to it."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.count = count
        self.delivered = 0
        for folder in ("new", "cur", "tmp"):
            (path / folder).mkdir(parents=True)
        self.dir_fd = os.open(path, os.O_RDONLY)

    def fill(self, claim: str) -> None:
        for folder in ("new", "cur"):
            shutil.rmtree(self.path / folder)
            (self.path / folder).mkdir()
        self.delivered = 0
        for number in range(self.count):
            self.deliver(claim, "cur" if number % 2 else "new")

    def deliver(self, claim: str = CLAIM, folder: str = "new") -> None:
        number = self.delivered
        self.delivered += 1
        name = f"{1700000000 + number}.M{number}P4711.mail.example.org{claim}"
        info = ":2,S" if folder == "cur" else ""
        (self.path / folder / (name + info)).write_bytes(BODY)

    def change_flag(self) -> None:
        name = min((self.path / "cur").iterdir())
        name.rename(
            name.with_name(name.name.partition(":")[0] + (":2,S" if name.name.endswith("F") else ":2,F"))
        )

    def lose_cache(self) -> None:
        (self.path / ".statcache").unlink(missing_ok=True)

    def open(self, wanted: str) -> Opened:
        opened = opening.open_maildrop(self.dir_fd, opening.Options(boot_id=b"bench"))
        assert opened.outcome == wanted, (opened.outcome, opened.reason)
        return opened

    def cost(
        self, rounds: int, wanted: str, before: Callable[[], None] = lambda: None, repeat: int = 1
    ) -> float:
        """Return microseconds of CPU for one opening, the least of the rounds."""
        least = float("inf")
        for _ in range(rounds):
            before()
            self.wait_for_the_clock()
            started = time.process_time()
            for _ in range(repeat):
                opened = self.open(wanted)
                opened.maildrop.stat()
                opened.close()
            least = min(least, (time.process_time() - started) / repeat)
        return least * 1e6

    def wait_for_the_clock(self) -> None:
        """Deliveries just made would have the session wait for a clock tick, which is no work."""
        last = max((self.path / folder).stat().st_ctime_ns for folder in ("new", "cur"))
        clock = self.path / "tmp" / "clock"
        while True:
            clock.write_bytes(b"")
            if clock.stat().st_ctime_ns > last:
                return

    def poll(self, rounds: int) -> float:
        least = float("inf")
        for _ in range(rounds):
            started = time.process_time()
            for _ in range(100):
                opened = self.open("hit")
                for kind in ("UIDL", "LIST"):
                    for offset, length in opened.maildrop.listing_segments(kind):
                        if opened.image.octets is not None:
                            memoryview(opened.image.octets)[offset : offset + length]
                opened.close()
            least = min(least, (time.process_time() - started) / 100)
        return least * 1e6


def measured(folder: str | None, count: int, rounds: int) -> Iterator[tuple[str, float, int]]:
    """Yield what was measured, its microseconds, and over how many messages they spread (0: not at all)."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        bench = Bench(Path(scratch) / "Maildir", count)
        bench.fill(CLAIM)
        yield "rebuild W=", bench.cost(rounds, "rebuild", bench.lose_cache), count
        yield "hit", bench.cost(rounds, "hit", repeat=200), 0
        yield "poll", bench.poll(rounds), 0
        yield "new mail", bench.cost(rounds, "refresh", bench.deliver), count
        yield "flags", bench.cost(rounds, "refresh", bench.change_flag), count
        bench.fill("")
        yield "rebuild", bench.cost(rounds, "rebuild", bench.lose_cache), count
        os.close(bench.dir_fd)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="20,1000,10000", metavar="N,N,...")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--folder", metavar="DIR")
    arguments = parser.parse_args()
    gc.disable()  # as in the broker, and so in every session
    print(f"{'messages':>8}  {'what':<12} {'µs CPU':>9} {'per message':>12}")
    for size in map(int, arguments.sizes.split(",")):
        for what, microseconds, spread in measured(arguments.folder, size, arguments.rounds):
            each = f"{microseconds / spread:12.2f}" if spread else ""
            print(f"{size:>8}  {what:<12} {microseconds:>9.1f} {each}")


if __name__ == "__main__":
    main()

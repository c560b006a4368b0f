"""
`python -m loadtest.biglog LOG --size 5G > big.log`: a log as large as one likes, made of a real log's lines.

For measuring `gpop report`, and for looking at what it draws. Each line is one that gpop wrote, with other
values where a large site would have them: time, user, address, messages, and the times that follow from
those. Mail comes and goes, days have a rhythm, some users are polled every minute and some addresses guess
passwords. The same arguments make the same log.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpop import events

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# So many ready lines are made, and then written again and again with other times.
VARIANTS = 200_000
# Sessions of a site that is used: what share the cache gives them. The rest are rebuilds.
HITS, REFRESHES = 0.87, 0.12
HIT_MS, REFRESH_MS_PER_MESSAGE, REBUILD_MS_PER_MESSAGE = 0.12, 0.0009, 0.0095
# What gpop writes once in a while. The rest of a real log's lines come about as often as in it.
RARE = (
    "broker_started",
    "broker_stopped",
    "shutdown_started",
    "front_started",
    "front_draining",
    "auth_started",
    "passwd_file_read",
    "certificate_loaded",
)
REFUSALS = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.biglog", description=__doc__.split("\n")[1])
    parser.add_argument(
        "log", metavar="LOG", type=Path, help="a log of a real gpop, as a load test leaves it"
    )
    parser.add_argument("--size", type=_octets, default="1G", help="octets to write: 500M, 5G (default 1G)")
    parser.add_argument("--lines", type=int, help="lines to write, in place of --size")
    parser.add_argument("--days", type=float, default=7, help="time that the log covers (default 7)")
    parser.add_argument("--users", type=int, default=20_000, help="accounts that poll (default 20000)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    variants = Variants(args.log, args.users, chance)
    lines = args.lines or int(args.size / variants.mean_octets)
    with contextlib.suppress(BrokenPipeError):
        write(sys.stdout.buffer, variants, lines, args.days * 86400, chance)
    return 0


def _octets(text: str) -> int:
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1)
    return int(float(number) * unit)


class Variants:
    """Ready lines without their time: of sessions, and of all else."""

    def __init__(self, log: Path, users: int, chance: random.Random) -> None:
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.startswith("{")]
        real = [line for line in lines if line["event"] in events.EVENTS]
        self._sessions = [line for line in real if line["event"] == "session_closed"]
        refusals = [line for line in real if line["event"] == "login_refused"]
        rest = [line for line in real if line["event"] in RARE] or real
        if not self._sessions:
            raise SystemExit(f"{log}: no session_closed in it")
        self._chance = chance
        self._users = users
        self.common = [_text(self._session(number)) for number in range(VARIANTS)]
        self.refusals = [
            _text(self._refusal(each)) for each in refusals for _ in range(5000 // len(refusals))
        ] or self.common
        self.rest = [_text(each) for each in rest]
        self.mean_octets = sum(map(len, self.common)) / len(self.common) + len(
            '{"ts": "2026-01-01T00:00:00.000Z",'
        )

    def _session(self, number: int) -> dict[str, Any]:
        chance = self._chance
        line = dict(chance.choice(self._sessions))
        # Few users poll much, and most have little mail.
        user = int(self._users * chance.random() ** 2)
        messages = int(math.exp(random.Random(user).gauss(4.5, 2.2)))
        outcome = chance.random()
        if outcome < HITS:
            cache, reason, opening_ms = "hit", "unchanged", HIT_MS
        elif outcome < HITS + REFRESHES:
            cache, reason = "refresh", chance.choices(["new_changed", "cur_changed", "racy"], [80, 15, 5])[0]
            opening_ms = 0.9 + messages * REFRESH_MS_PER_MESSAGE
        else:
            cache, reason = "rebuild", chance.choices(["absent", "header_damaged"], [97, 3])[0]
            opening_ms = 1.1 + messages * REBUILD_MS_PER_MESSAGE
        cache_ms = opening_ms * math.exp(abs(chance.gauss(0, 0.6)))
        octets_each = 4000 + number % 20000
        name = f"user{user:06d}"
        return line | {
            **{"peer": _address(user), "peer_port": 1024 + number % 60000, "user": name, "account": name},
            **{"cache": cache, "cache_reason": reason, "cache_ms": round(cache_ms, 3)},
            **{"messages": messages, "octets": messages * octets_each},
            "duration_ms": round(cache_ms + line["duration_ms"] * math.exp(chance.gauss(1, 1.2)), 3),
        }

    def _refusal(self, line: dict[str, Any]) -> dict[str, Any]:
        guesser = int(abs(self._chance.gauss(0, 200)))
        return line | {"peer": f"198.51.100.{guesser % 250}", "user": f"guess{self._chance.randrange(5000)}"}


def _address(user: int) -> str:
    if user % 3 == 0:
        return f"2001:db8:{user // 65536:x}:{user % 65536:x}::1"
    return f"10.{user >> 16 & 255}.{user >> 8 & 255}.{user & 255}"


def _text(line: dict[str, Any]) -> bytes:
    """A line without its time, which is its first field."""
    without = {name: value for name, value in line.items() if name != "ts"}
    return b" " + json.dumps(without).encode()[1:] + b"\n"


def write(out: BinaryIO, variants: Variants, lines: int, span_s: float, chance: random.Random) -> None:
    """Write that many lines in the order of time."""
    written = 0
    last = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
    seconds = max(1, int(span_s))
    weights = [_busy(second) for second in range(0, 86400, 60)]
    per_second = lines / seconds / (sum(weights) / len(weights))
    start = last - datetime.timedelta(seconds=seconds)
    for second in range(seconds):
        at = start + datetime.timedelta(seconds=second)
        minute = at.hour * 60 + at.minute
        due = per_second * weights[minute]
        count = min(int(due) + (chance.random() < due % 1), lines - written)
        if second == seconds - 1:
            count = lines - written
        out.write(b"".join(_second(variants, at.strftime("%Y-%m-%dT%H:%M:%S"), count, chance)))
        written += count


def _busy(second_of_day: int) -> float:
    """How busy a time of the day is: least at four, most in the afternoon."""
    return 1 - 0.7 * math.cos((second_of_day / 3600 - 4) / 24 * 2 * math.pi)


def _second(variants: Variants, stamp: str, count: int, chance: random.Random) -> Iterator[bytes]:
    for number in range(count):
        which = chance.random()
        kind = variants.common
        if which < REFUSALS:
            kind = variants.refusals if which < REFUSALS * 0.999 else variants.rest
        yield b'{"ts": "%b.%03dZ",' % (stamp.encode(), number * 1000 // count)
        yield kind[int(chance.random() * len(kind))]


if __name__ == "__main__":
    sys.exit(main())

"""
The attackers' process: one scenario, until standard input ends; then what it achieved, as JSON.

A process of its own, so that what the attack costs its clients is not what it costs honest ones.
Started by `python -m loadtest.hostile`, which writes one line of JSON to its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

from loadtest.hostile.attack import Attack
from loadtest.hostile.attacks import ATTACKS

UNDER_WAY = "under way"


def main() -> int:
    told = json.loads(sys.stdin.readline())
    achieved = asyncio.run(_attack(told.pop("scenario"), Attack(**told)))
    print(json.dumps(achieved), flush=True)
    return 0


async def _attack(scenario: str, attack: Attack) -> dict[str, Any]:
    started = time.monotonic()
    attacking = asyncio.ensure_future(ATTACKS[scenario](attack))
    is_under_way = asyncio.create_task(attack.under_way.wait())
    await asyncio.wait({attacking, is_under_way}, return_when=asyncio.FIRST_COMPLETED)
    print(UNDER_WAY, flush=True)
    stop = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait({attacking, stop}, return_when=asyncio.FIRST_COMPLETED)
    attack.count_open()
    attacking.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await attacking  # an error of its own ends this process with a traceback
    attack.close()
    return dict(attack.achieved) | {"seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    sys.exit(main())

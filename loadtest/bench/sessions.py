"""
What a whole session costs, one after the other, without front and auth: executed by `micro`, alone in a
fresh interpreter that is made as the broker is.

    python -I -S sessions.py SETTINGS HOME UID SESSIONS

SETTINGS is a file with what the config says for sessions, HOME has a Maildir. Prints JSON: CPU microseconds
and page faults of the session and, for the fork, of its parent, by what the client asks for.
"""

from __future__ import annotations

import _socket
import gc
import marshal
import os
import resource
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from gpop import signals
from gpop.broker import broker, rehearsal
from gpop.privsep import channel, confinement, messages
from gpop.session import session

TYPE_CHECKING = False  # this interpreter is to be as lean as the broker's
if TYPE_CHECKING:
    from typing import Any

assert broker  # loaded as it is where sessions are forked

SCRIPTS = {
    "nothing but QUIT": b"QUIT\r\n",
    "STAT": b"STAT\r\nQUIT\r\n",
    "poll (STAT, UIDL)": b"STAT\r\nUIDL\r\nQUIT\r\n",
}
WARMING = 30
REPLIES_OCTETS = 1 << 22


class Settings:
    """Attributes instead of keys."""

    def __init__(self, plain: dict[str, object]) -> None:
        self.__dict__.update(plain)


class Forker:
    """Forks sessions for one account, as the broker does for a login."""

    def __init__(self, settings: Any, home: bytes, uid: int) -> None:
        self.settings = settings
        self.options = session.maildrop_options(settings, b"0" * 32)
        self.confinement = confinement.Confinement(settings.session_calls, settings.memory_limit_mib << 20)
        self.login = messages.encode(
            messages.SERVE,
            uid=uid,
            maildir=home + b"/Maildir",
            login_id=1,
            account=b"somebody",
            gid=uid,
            groups=[],
            home=home,
            peer="127.0.0.1",
            received_ms=0,
            removal="",
            dialogue=0,
            pipelined=0,
            utf8=0,
            language="",
        )

    def one(self, script: bytes) -> tuple[float, int]:
        """Fork one session and wait for its end; returns its CPU seconds and page faults."""
        client, stream = _socket.socketpair()
        ours, theirs = channel.pair()
        client.send(script)
        client.shutdown(_socket.SHUT_WR)
        pid = os.fork()
        if pid == 0:
            confine = self.confinement.enter
            session.run(self.login, stream.fileno(), theirs.fileno(), self.settings, self.options, confine)
        # Before waiting: a session is not over until its client has taken everything.
        stream.close()
        replies = b""
        while octets := client.recv(REPLIES_OCTETS):
            replies += octets
        _, _, used = os.wait4(pid, 0)
        for sock in (client, ours, theirs):
            sock.close()
        if not replies.endswith(b"+OK bye\r\n"):
            raise SystemExit(f"a session said {replies[-200:]!r}")
        return used.ru_utime + used.ru_stime, used.ru_minflt

    def cost(self, script: bytes, sessions: int) -> dict[str, float]:
        """What one of so many sessions costs, on average."""
        for _ in range(WARMING):
            self.one(script)
        before = resource.getrusage(resource.RUSAGE_SELF)
        found = [self.one(script) for _ in range(sessions)]
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {
            "cpu_us": sum(each[0] for each in found) / sessions * 1e6,
            "faults": sum(each[1] for each in found) / sessions,
            "parent_us": seconds / sessions * 1e6,
            "parent_faults": (after.ru_minflt - before.ru_minflt) / sessions,
        }


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        settings = Settings(marshal.load(file))
    home, uid, sessions = os.fsencode(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    signals.install()
    confinement.no_new_privileges()
    forker = Forker(settings, home, uid)
    rehearsal.rehearse(os.path.dirname(sys.argv[1]), forker.settings, forker.options, forker.confinement)
    gc.collect()
    gc.freeze()
    gc.disable()
    figures = {what: forker.cost(script, sessions) for what, script in SCRIPTS.items()}
    import json  # not before: what is loaded, every fork pays for

    print(json.dumps(figures))


if __name__ == "__main__":
    main()

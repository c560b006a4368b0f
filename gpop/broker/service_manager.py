"""
EDGE: what systemd is told about the service as a whole (sd_notify(3)), where there is a systemd.

A datagram of "NAME=value" lines to the socket that it named in NOTIFY_SOCKET. `launch` has taken the
name out of the environment, so that no other process and no session knows of it.

Executed by the broker, as root.
"""

from __future__ import annotations

import _socket
import time

# What is not taken at once is sent with the next look; a manager that takes nothing is not filled up.
MAX_UNSENT_OCTETS = 4096


class ServiceManager:
    """
    The service manager at `address` (NOTIFY_SOCKET), which may be "": then nobody is told anything.

    Attributes:
        address, watchdog_s: as `launch` found them; `watchdog_s` is 0 if no WATCHDOG=1 is waited for.
    """

    __slots__ = ("_ready", "_status", "_unsent", "address", "watchdog_s")

    def __init__(self, address: str, watchdog_s: float) -> None:
        self.address = address
        self.watchdog_s = watchdog_s
        self._unsent = ""
        self._status = ""
        self._ready = False

    def starts_over(self) -> None:
        """A reload or an upgrade has begun: `ready` says when it is over."""
        self._ready = False
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}\n")

    def ready(self) -> None:
        """The fronts accept, or accept still. Says so once."""
        if not self._ready:
            self._ready = True
            self._tell("READY=1\n")

    def stops(self, within_s: float) -> None:
        """The end has begun, and takes at most so long."""
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(within_s * 1_000_000)}\n")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}\n")

    def well(self) -> None:
        """Fronts and auth answer: the watchdog may start counting anew."""
        if self.watchdog_s:
            self._tell("WATCHDOG=1\n")

    def _tell(self, lines: str) -> None:
        if not self.address:
            return
        octets = (self._unsent + lines).encode()
        # A name that begins with "@" is one in the abstract namespace.
        address = "\0" + self.address[1:] if self.address[0] == "@" else self.address
        try:
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
            try:
                sock.sendto(octets, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL, address)
            finally:
                sock.close()
            self._unsent = ""
        except OSError:
            self._unsent = octets[-MAX_UNSENT_OCTETS:].decode()

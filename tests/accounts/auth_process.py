"""A real auth process for tests, with the test in the place of the broker and of the fronts."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpop import programs
from gpop.privsep import channel, messages
from gpop.privsep.messages import Frame

DEADLINE_S = 20.0

DEFAULTS: dict[str, Any] = {
    "user_settings": "/nonexistent/user-settings",
    "maildir": "Maildir",
    "first_valid_uid": 1000,
    "last_valid_uid": 59999,
    "first_valid_gid": 100,
    "max_checks": 4,
    "max_logins_per_address": 10_000,
    "max_logins_per_second": 0,
    "login_delay_s": 0,
    "login_delay_burst": 2,
    "check_timeout_s": 30.0,
    "refusal_time_s": 0.2,
    "trusted_networks": ["127.0.0.0/24"],  # so that other addresses of 127.0.0.0/8 are strangers
    "proxy_networks": [],
    "xclient_networks": [],
    "penalty_forget_s": 900.0,
    "cache_enabled": False,
    "cache_lifetime_s": 600.0,
    "cache_max_entries": 1000,
    "cache_always_check_account": False,
    "virtual_case": "keep",
    "virtual_domain_separators": "",
    "virtual_default_domains": {},
    "virtual_sendmail_maps": [],
    "virtual_sendmail_domains": [],
    "virtual_postfix_maps": [],
    "virtual_recipient_delimiter": "",
    "virtual_propagate_extensions": True,
    "virtual_local_domains": [],
    "log_format": "json",
    "log_level": "info",
}


class PendingLogin:
    """A login sent to auth: the front's end of its channel, and the client's end of its stream."""

    def __init__(self, session_channel: socket.socket, client: socket.socket) -> None:
        self.channel = session_channel
        self.client = client
        self.sent_s = time.monotonic()

    def answer(self, deadline_s: float = DEADLINE_S) -> Frame:
        """The next frame on the channel. Raises ChannelClosed when auth closed it without one."""
        self.channel.settimeout(deadline_s)
        return channel.receive(self.channel)[0]

    def is_answered(self) -> bool:
        return bool(select.select([self.channel], [], [], 0)[0])

    def closed(self) -> bool:
        """Whether every other copy of both descriptors is closed, within the deadline."""
        self.channel.settimeout(DEADLINE_S)
        self.client.settimeout(DEADLINE_S)
        try:
            channel.receive(self.channel)
            return False
        except channel.ChannelClosed:
            return self.client.recv(1) == b""

    def close(self) -> None:
        self.channel.close()
        self.client.close()


def tcp_pair(peer: str) -> tuple[socket.socket, socket.socket]:
    """A client's stream from `peer`, an address of 127.0.0.0/8, and the server's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), source_address=(peer, 0))
        return client, listener.accept()[0]


class FakeFront:
    """A front's end of a login socket."""

    def __init__(self, login_socket: socket.socket) -> None:
        self.socket = login_socket
        self.logins: list[PendingLogin] = []

    def login(
        self,
        name: bytes,
        password: bytes,
        peer: str = "127.9.2.1",
        received_s: float | None = None,
        stream: socket.socket | None = None,
        prepared: tuple[bytes, bytes] = (b"", b""),
        through: str = "",
        local: str = "127.0.0.1",
    ) -> PendingLogin:
        """Hand a login over; `through`: the address that the client's stream really comes from."""
        ours, theirs = channel.pair()
        client, server = tcp_pair(through or peer) if stream is None else socket.socketpair()
        received_s = time.monotonic() if received_s is None else received_s
        frame = messages.encode(
            messages.LOGIN,
            login_id=len(self.logins) + 1,
            name=name,
            password=password,
            mechanism="USER",
            peer=peer,
            peer_port=4711,
            local=local,
            local_port=110,
            received_ms=int(received_s * 1000),
            dialogue=0,
            pipelined=0,
            prepared_name=prepared[0],
            prepared_password=prepared[1],
            utf8=0,
            language="",
        )
        pending = PendingLogin(ours, client)
        channel.send(self.socket, frame, [(stream or server).fileno(), theirs.fileno()])
        theirs.close()
        server.close()
        self.logins.append(pending)
        return pending

    def close(self) -> None:
        self.socket.close()


class AuthProcess:
    """`python -I gpop auth-process`, warmed; the test is its broker."""

    def __init__(
        self, sources: list[dict[str, str]], folder: Path, control_send_octets: int = 0, **settings: Any
    ) -> None:
        self.log_path = folder / "auth.log"
        self.control, theirs = channel.pair()
        if control_send_octets:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, control_send_octets)
        settings_fd = programs.settings_file(DEFAULTS | {"sources": sources} | settings)
        log_fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                programs.MAIN,
                "auth-process",
                f"--control-fd={theirs.fileno()}",
                f"--settings-fd={settings_fd}",
                f"--log-fd={log_fd}",
            ],
            pass_fds=(theirs.fileno(), settings_fd, log_fd),
            env={"DISPLAY": ":0", "PATH": "/usr/bin:/bin"},
        )
        theirs.close()
        os.close(settings_fd)
        os.close(log_fd)
        self.fronts: list[FakeFront] = []

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> AuthProcess:
        self.control.settimeout(DEADLINE_S)
        assert channel.receive(self.control)[0].kind == messages.READY
        return self

    def front(self) -> FakeFront:
        ours, theirs = channel.pair()
        attach = messages.encode(messages.ATTACH, front=len(self.fronts) + 1)
        channel.send(self.control, attach, [theirs.fileno()])
        theirs.close()
        self.fronts.append(FakeFront(ours))
        return self.fronts[-1]

    def served(self) -> Frame:
        """The next accepted login, as the broker gets it; the descriptors are checked and closed."""
        frame, fds = self.served_with_descriptors()
        channel.close_all(fds)
        return frame

    def served_with_descriptors(self) -> tuple[Frame, list[int]]:
        self.control.settimeout(DEADLINE_S)
        frame, fds = channel.receive(self.control)
        assert frame.kind == messages.SERVE
        channel.check_login_descriptors(*fds)
        return frame, fds

    def cut_off(self) -> FakeFront:
        """The front of which auth tells the broker next that it has to be replaced."""
        self.control.settimeout(DEADLINE_S)
        frame, _ = channel.receive(self.control)
        assert frame.kind == messages.CUT_OFF
        return self.fronts[frame.fields["front"] - 1]

    def drain(self, at_once: bool = False) -> None:
        channel.send(self.control, messages.encode(messages.DRAIN, at_once=int(at_once)))

    def events(self, name: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines()]
        return [line for line in lines if not name or line["event"] == name]

    def descriptors(self) -> int:
        # Without root nobody looks into auth, which is not dumpable: then this counts nothing.
        return len(os.listdir(f"/proc/{self.pid}/fd")) if os.geteuid() == 0 else 0

    def stop(self) -> None:
        for front in self.fronts:
            front.close()
            for login in front.logins:
                login.close()
        self.control.close()
        try:
            self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()


@contextmanager
def running(sources: list[dict[str, str]], folder: Path, **settings: Any) -> Iterator[AuthProcess]:
    process = AuthProcess(sources, folder, **settings)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


def let_clock_step(path: Path) -> None:
    """Wait until a change of `path` gets another ctime than its last one has."""
    changed = path.stat().st_ctime_ns
    probe = path.parent / "clock"

    def stepped() -> bool:
        probe.unlink(missing_ok=True)
        probe.touch()
        return probe.stat().st_ctime_ns > changed

    until(stepped, "a step of the file system's clock")
    probe.unlink()


def until(condition: Any, what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll `condition` until it holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        select.select([], [], [], 0.005)


def refusal(login: PendingLogin) -> tuple[str, str]:
    """Code and reason of a login that was refused."""
    frame = login.answer()
    assert frame.kind == messages.REFUSED
    return frame.fields["code"], frame.fields["reason"]


def accepted_by(auth: AuthProcess, login: PendingLogin) -> str:
    """The source that accepted a login."""
    frame = login.answer()
    assert frame.kind == messages.ACCEPTED
    auth.served()
    source: str = frame.fields["source"]
    return source

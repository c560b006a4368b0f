"""A log that is opened anew, as the broker tells the others of it."""

from __future__ import annotations

import json
import os
import socket
from contextlib import closing

from gpop import log_target
from gpop.broker.broker import Broker, Values
from gpop.broker.supervision import Generation, Process
from gpop.events import Log
from gpop.privsep import channel, messages


def test_who_can_not_be_told_of_the_new_log_is_told_again(tmp_path):
    """It wrote on to the file that was renamed, which is compressed and removed some day."""
    path, old = tmp_path / "gpop.log", tmp_path / "gpop.log.1"
    log = Log(log_target.open_file(str(path)), "broker")
    settings = {"log_target": "file", "log_path": str(path), "log_syslog_socket": ""}
    broker = Broker("gpop.toml", log, Values(settings))
    ours, theirs = channel.pair()
    ours.setblocking(False)
    process = Process("auth", 1 << 30, ours, Generation({}, {}, log, None, 0.0), 0.0)
    process.ready = True
    broker.processes[process.pid] = process
    with closing(theirs), closing(ours):
        unread = fill(ours)
        path.rename(old)
        broker._reopen_log()
        events = [json.loads(line)["event"] for line in (old.read_text() + path.read_text()).splitlines()]
        assert events == ["log_reopen_failed", "log_reopened"]
        for _ in range(unread):
            assert theirs.recv(16) == b"x"
        broker.health.keep_time(1e9)
        frame, (fd,) = channel.receive(theirs)
        assert frame.kind == messages.LOG
        assert os.path.samestat(os.fstat(fd), path.stat())
        assert not process.lost
    os.close(fd)
    os.close(log.fd)
    broker.poller.close()


def fill(sock: socket.socket) -> int:
    """Send until nothing more goes into a socket; returns how many frames that were."""
    count = 0
    try:
        while True:
            sock.send(b"x")
            count += 1
    except BlockingIOError:
        return count

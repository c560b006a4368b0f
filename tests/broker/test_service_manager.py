"""What the service manager is told, and what it costs if it can't be."""

from __future__ import annotations

import socket

from gpop.broker.service_manager import ServiceManager
from tests.descriptors import room_for


def test_a_broker_without_a_free_descriptor_tells_the_manager_later(tmp_path):
    """It ended, and all of gpop with it, because it needs one for each word to the manager."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        told = ServiceManager(path, 10.0)
        with room_for(0):
            told.well()
        told.status("2 sessions")
        assert manager.recv(4096) == b"WATCHDOG=1\nSTATUS=2 sessions\n"

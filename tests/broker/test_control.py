"""The control socket, by itself."""

from __future__ import annotations

import os
import resource

import pytest

from gpop.broker.control import Control
from gpop.events import Log
from tests import frames
from tests.descriptors import open_descriptors


def test_a_list_of_sessions_that_can_not_be_written_leaves_nothing_open():
    """Each `gpop who` without memory for its answer cost the broker a descriptor."""
    login = frames.serve()
    log = Log(2, "broker")
    control = Control(log, dict.fromkeys(range(100), login), dict.__setitem__, dict.__delitem__, lambda: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = open_descriptors()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(login), limits[1]))
    try:
        with pytest.raises(OSError):
            control._session_list()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert open_descriptors() == before
    os.close(control._session_list())

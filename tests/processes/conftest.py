"""Fixtures with real processes: a site, and gpop serving it."""

from __future__ import annotations

import pytest

from tests.serving import Server, Site, wait_until


@pytest.fixture
def make_site():
    """A function that makes a site with the given settings, removed after the test."""
    sites = []

    def make(**settings):
        sites.append(Site(**settings))
        return sites[-1]

    yield make
    for site in sites:
        site.remove()


@pytest.fixture
def make_server(make_site):
    """A function that starts gpop on a site (a new one with the given settings if none), stopped after."""
    servers = []

    def make(site=None, **settings):
        servers.append(Server(site or make_site(**settings)))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def server(make_server):
    """gpop with one account."""
    return make_server()


@pytest.fixture(scope="module")
def module_server():
    """gpop with one account, for all tests of a module that ask for `lasting_server`."""
    site = Site()
    try:
        with Server(site) as server:
            yield server
    finally:
        site.remove()


@pytest.fixture
def lasting_server(module_server):
    """The module's gpop with an empty maildrop; the test must not have led to any fault."""
    module_server.site.empty()
    before = len(module_server.faults())
    yield module_server
    wait_until(lambda: not module_server.pids("session"), what="the sessions to end")
    assert module_server.faults()[before:] == []

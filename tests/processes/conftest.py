"""Fixtures with real processes: a site, and gpop serving it."""

from __future__ import annotations

import pytest

from tests.serving import Server, Site


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

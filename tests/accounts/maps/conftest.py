"""The programs that write maps, for the tests that are marked `needs_map_tools`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.accounts.maps.map_tools import MapTools


@pytest.fixture(scope="session")
def map_tools(tmp_path_factory: pytest.TempPathFactory) -> MapTools:
    """Postfix's and sendmail's own programs."""
    folder = tmp_path_factory.mktemp("map-tools")
    folder.chmod(0o755)
    return MapTools(folder)


@pytest.fixture
def own_map_tools(tmp_path: Path) -> MapTools:
    """The same, in a folder of this test's own."""
    return MapTools(tmp_path)

"""The example queries for archives run, and ask for events that gpop writes."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from gpop.events import EVENTS
from tests.report.conftest import Driven, Run

QUERIES = sorted((Path(__file__).parents[2] / "ops" / "queries").glob("*.sql"))


@pytest.mark.parametrize("query", QUERIES, ids=lambda path: path.stem)
def test_an_example_query_runs(tmp_path: Path, driven: Driven, report: Run, query: Path) -> None:
    """On an archive that the report has written."""
    archive = tmp_path / "archive.parquet"
    assert report("--parquet", archive, driven.path).status == 0
    text = query.read_text("utf-8")
    assert set(re.findall(r"event = '(\w+)'", text)) <= set(EVENTS)
    with duckdb.connect() as database:
        database.execute("SET VARIABLE archive = ?", [str(archive)])
        rows = database.execute(text).fetchall()
    if query.stem == "hits-by-day":
        assert sum(row[1] for row in rows) == driven.sessions
    if query.stem == "rebuilt-again":
        assert [row[:2] for row in rows] == [(driven.names[0], driven.rebuilds)]

"""
A report for programs: JSON, and its tables as CSV. EDGE: writes to an open file.
"""

from __future__ import annotations

import csv
import json
from typing import Any, TextIO

from gpop.report import tables, words


def write_json(report: dict[str, Any], out: TextIO) -> None:
    """The whole report; all that is not ASCII is escaped, and so is whatever a terminal would act upon."""
    json.dump(report, out, indent=2)
    out.write("\n")


def write_csv(report: dict[str, Any], name: str, out: TextIO) -> None:
    """One table, with the keys of `--json` for a heading."""
    rows = tables.BY_NAME[name].of(report)
    keys = [column.key for column in tables.BY_NAME[name].columns]
    keys += [key for key in (rows[0] if rows else {}) if key not in keys]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(keys)
    writer.writerows([words.cell(row.get(key)) for key in keys] for row in rows)

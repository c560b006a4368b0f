"""
Lines of the log into a table of DuckDB. EDGE: temporary files, pipes; the only module that imports duckdb.

Every line becomes a row, in order: one that gpop did not write, or that was cut off, a row without fields
which keeps the line's beginning, so that rows number lines. Nothing is fatal that a line can say. The table
lies in a temporary folder, not in memory; what DuckDB may have of that is limited, and the rest goes to disk.
"""

from __future__ import annotations

import contextlib
import datetime
import gzip
import io
import os
import select
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpop import programs
from gpop.report import inputs
from gpop.report.columns import FIELDS, TIME
from gpop.report.inputs import BadInput, Input

# Of DuckDB's own; the whole process needs some 200 MB more.
MEMORY_LIMIT = "500MB"
# More would read quicker, and each has buffers of its own.
MOST_THREADS = 4
# A line of gpop's has 4,096 octets at most.
MAX_LINE_OCTETS = 65536
BUFFER_OCTETS = 256 * MAX_LINE_OCTETS
MAX_DAMAGED_SHOWN = 200
# Of a file of nothing but such lines not all are remembered.
MOST_REJECTED_KEPT = 200
CHUNK_OCTETS = 1 << 20
# Nothing that a line of gpop's holds: it escapes what can't be printed, this among it.
NO_DELIMITER = "\U0010ffff"
# Times outside of these are no times of a log, whatever a damaged line says.
EARLIEST, LATEST = "1970-01-01", "2200-01-01"
MOST_MS = 1e12
POLL_S = 0.1


class MissingExtra(Exception):
    """What `gpop report` needs is not installed; the text says how to."""


class Unreadable(Exception):
    """A log that could not be read, or not to its end."""


@dataclass
class Read:
    """What came of one log: its rows are `first_row` up to `first_row + rows`."""

    name: str
    octets: int
    first_row: int
    rows: int = 0
    rejected: int = 0
    problem: str = ""


class Store:
    """The table `log`, in a database below `folder`, which is the caller's to make and remove."""

    def __init__(self, folder: Path) -> None:
        try:
            import duckdb
        except ImportError as error:
            raise MissingExtra(
                f"it needs {error.name}, which is not there; `{programs.installing('report')}` brings it"
            ) from error
        self.folder = folder
        self.error = duckdb.Error
        self.missing_table = duckdb.CatalogException
        self.unreadable = (duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException)
        self.reads: list[Read] = []
        self.rejected: list[tuple[str, int, str]] = []
        self._ending = threading.Event()
        self._worker = ThreadPoolExecutor(1)
        self._database = duckdb.connect(str(folder / "log.duckdb"), config=_config(folder))
        for setting in (
            "TimeZone = 'UTC'",
            "enable_progress_bar = true",
            "enable_progress_bar_print = false",
            "progress_bar_time = 0",
        ):
            self._database.execute(f"SET {setting}")
        columns = ", ".join(f'"{name}" {kind}' for name, kind in FIELDS.items())
        self._database.execute(f"CREATE TABLE log ({TIME} TIMESTAMP, {columns}, damaged VARCHAR)")

    def close(self) -> None:
        """Close the database; its files are removed with the folder."""
        self._database.close()
        self._worker.shutdown()

    def ask(
        self,
        question: str,
        values: list[Any] | None = None,
        progress: Callable[[float], None] = lambda _: None,
    ) -> list[tuple[Any, ...]]:
        """Return the rows that a statement gives; `progress` hears how far it is, from 0 to 1."""
        # Not in this thread: it waits in Python, so that Ctrl-C is heard.
        asked = self._worker.submit(lambda: self._database.execute(question, values or []).fetchall())
        try:
            while not asked.done():
                progress(max(0.0, self._database.query_progress() / 100))
                with contextlib.suppress(TimeoutError):
                    asked.exception(POLL_S)
        except BaseException:
            self._ending.set()
            self._database.interrupt()
            asked.exception()  # only when it has stopped can the database be closed
            raise
        return asked.result()

    # Reading

    def read(self, log: Input, progress: Callable[[float], None] = lambda _: None) -> Read:
        """Append a log to the table, as far as it can be read; if that is not all, there is a `problem`."""
        read = Read(log.name, log.octets, self._next_row())
        try:
            if log.packing == inputs.PARQUET:
                self._insert_archive(log.path, progress)
            elif log.stream:
                self._read_stream(log, read)
            else:
                self._insert_lines(self._linked(log.path), log.packing, progress)
        except Unreadable as error:
            read.problem = str(error)
        except self.unreadable as error:
            read.problem = _first_line(error)
            if log.packing == inputs.GZIP:
                # Cut short: what is there of it is worth having.
                self._read_piped(lambda: gzip.GzipFile(log.path).read1, read)
        self._count_rejected(read)
        read.rows = self._next_row() - read.first_row
        self.reads.append(read)
        return read

    def _next_row(self) -> int:
        last = self.ask("SELECT max(rowid) FROM log")[0][0]
        return 0 if last is None else int(last) + 1

    def read_chunk(self, octets: bytes) -> int:
        """Append lines that just came and are no log of their own; returns how many did not become rows."""
        chunk = self.folder / "chunk"
        chunk.write_bytes(octets)
        self._insert_lines(chunk, inputs.PLAIN, lambda _: None)
        read = Read("", len(octets), 0)
        self._count_rejected(read)
        self.rejected.clear()
        return read.rejected

    def _linked(self, path: Path) -> Path:
        """A link to the file with a plain name: DuckDB takes "*" and "[" in names for patterns."""
        link = self.folder / f"log{len(self.reads)}"
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        return link

    def _insert_lines(self, path: Path, packing: str, progress: Callable[[float], None]) -> None:
        self.ask(f"INSERT INTO log {_lines(path, packing)}", progress=progress)

    def _insert_archive(self, path: Path, progress: Callable[[float], None]) -> None:
        link = self._linked(path)
        there = {row[0] for row in self.ask(f"DESCRIBE SELECT * FROM read_parquet('{link}')")}
        missing = {TIME, "event"} - there
        if missing:
            raise Unreadable(f"is no archive of gpop's: it has no column {', '.join(sorted(missing))}")
        fields = {TIME: "TIMESTAMP"} | FIELDS
        casts = [
            f'try_cast("{name}" AS {kind})' if name in there else "NULL" for name, kind in fields.items()
        ]
        self.ask(
            f"INSERT INTO log SELECT {', '.join(casts)}, NULL FROM read_parquet('{link}')", progress=progress
        )

    def _read_stream(self, log: Input, read: Read) -> None:
        stream = inputs.open_stream(log)
        first = _first_octets(stream)
        try:
            packed = inputs.packing(first)
        except BadInput as error:
            raise Unreadable(str(error)) from error
        whole = _Joined(first, stream, self._ending)
        if packed == inputs.PLAIN:
            self._read_piped(lambda: whole.read, read)
        elif packed == inputs.GZIP:
            self._read_piped(lambda: gzip.GzipFile(fileobj=whole).read1, read)
        else:
            # DuckDB unpacks files only, and reads an archive from its end.
            kept = self.folder / "stream"
            with kept.open("wb") as file:
                shutil.copyfileobj(whole, file, CHUNK_OCTETS)
            again = Input(log.name, kept, packed, kept.stat().st_size)
            if packed == inputs.PARQUET:
                self._insert_archive(again.path, lambda _: None)
            else:
                self._insert_lines(self._linked(kept), packed, lambda _: None)
            kept.unlink()

    def _read_piped(self, source: Callable[[], Callable[[int], bytes]], read: Read) -> None:
        """Let DuckDB read from a pipe what `source` gives."""
        pipe = self.folder / "pipe"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        # A daemon: should DuckDB never open the pipe, nobody waits for it.
        feeder = threading.Thread(target=_feed, args=(pipe, source, read), daemon=True)
        feeder.start()
        try:
            self._insert_lines(pipe, inputs.PLAIN, lambda _: None)
        except self.unreadable as error:
            read.problem = _first_line(error)
            return
        feeder.join()

    def _count_rejected(self, read: Read) -> None:
        """Note the lines that did not become rows: no UTF-8, or longer than any line may be."""
        try:
            read.rejected = int(self.ask("SELECT count(DISTINCT line) FROM reject_errors")[0][0])
        except self.missing_table:
            return  # nothing was read
        first = self.ask(
            "SELECT line, any_value(csv_line[:200]) FROM reject_errors "
            f"GROUP BY line ORDER BY line LIMIT {MOST_REJECTED_KEPT}"
        )
        self.ask("DROP TABLE reject_errors")
        self.ask("DROP TABLE reject_scans")
        self.rejected += [(read.name, int(line), str(text)) for line, text in first]

    # What was read

    def narrow(
        self, since: datetime.datetime | None, until: datetime.datetime | None, user: str | None
    ) -> None:
        """Make the view `entry`: the lines that the report is about. Times are UTC, without a zone."""
        wanted = [f"{TIME} IS NOT NULL", "event IS NOT NULL", "damaged IS NULL"]
        if since:
            wanted.append(f"{TIME} >= TIMESTAMP '{since:%Y-%m-%d %H:%M:%S.%f}'")
        if until:
            wanted.append(f"{TIME} < TIMESTAMP '{until:%Y-%m-%d %H:%M:%S.%f}'")
        if user is not None:
            name = user.replace("'", "''")
            wanted.append(f"'{name}' IN (\"user\", account)")
        columns = ", ".join(f'"{name}"' for name in (TIME, *FIELDS))
        self.ask(f"CREATE OR REPLACE VIEW entry AS SELECT {columns} FROM log WHERE {' AND '.join(wanted)}")

    def damaged(self, most: int) -> tuple[int, list[dict[str, Any]]]:
        """How many lines are none of gpop's, and the first of them with their place."""
        count = self.ask("SELECT count(*) FROM log WHERE damaged IS NOT NULL")[0][0]
        rows = self.ask(
            f"SELECT rowid, damaged FROM log WHERE damaged IS NOT NULL ORDER BY rowid LIMIT {most}"
        )
        found = [self._place(int(row), str(text)) for row, text in rows]
        found += [{"file": name, "line": line, "text": text} for name, line, text in self.rejected]
        order = {read.name: number for number, read in enumerate(self.reads)}
        found.sort(key=lambda each: (order.get(each["file"], 0), each["line"]))
        return int(count) + sum(read.rejected for read in self.reads), found[:most]

    def _place(self, row: int, text: str) -> dict[str, Any]:
        read = next((each for each in reversed(self.reads) if each.first_row <= row), None)
        if read is None:
            return {"file": "", "line": row + 1, "text": text}
        line = row - read.first_row + 1
        # Rejected lines are no rows, and stand before this one.
        for name, rejected, _ in self.rejected:
            line += name == read.name and rejected <= line
        return {"file": read.name, "line": line, "text": text}

    def archive(self, path: Path, progress: Callable[[float], None] = lambda _: None) -> int:
        """Write what the report is about as a Parquet file; returns the number of lines."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.touch(mode=0o600, exist_ok=False)
        link = self.folder / "archive"
        link.symlink_to(draft.absolute())
        try:
            form = "FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false"
            written = self.ask(f"COPY entry TO '{link}' ({form})", progress=progress)
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)
        return int(written[0][0])


def _config(folder: Path) -> dict[str, Any]:
    return {
        "memory_limit": MEMORY_LIMIT,
        "threads": min(MOST_THREADS, os.cpu_count() or 1),
        "temp_directory": str(folder / "spilled"),
        # Nothing is fetched from anywhere.
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }


def _lines(path: Path, packing: str) -> str:
    """
    SQL for the rows that the lines of a file are.

    The reader is that of CSV, with one column and nothing that has a meaning, because it gives the line
    itself; a reader of JSON says nothing about lines that are none.
    """
    shape = {TIME: "VARCHAR"} | FIELDS
    wanted = ", ".join(f'"{name}": "{kind}"' for name, kind in shape.items())
    at = f"try_cast(f.{TIME} AS TIMESTAMPTZ)"
    return f"""
        SELECT moment, {", ".join(_checked(name, kind) for name, kind in FIELDS.items())},
            CASE WHEN trim(line) <> '' AND (moment IS NULL OR f.event IS NULL)
                THEN line[:{MAX_DAMAGED_SHOWN}] END
        FROM (
            SELECT line, f,
                CASE WHEN {at} BETWEEN '{EARLIEST}' AND '{LATEST}' THEN {at}::TIMESTAMP END AS moment
            FROM (
                SELECT line, CASE WHEN json_valid(line) THEN json_transform(line, '{{{wanted}}}') END AS f
                FROM read_csv('{path}', columns = {{'line': 'VARCHAR'}}, auto_detect = false, header = false,
                    delim = '{NO_DELIMITER}', quote = '', escape = '', comment = '', new_line = '\\n',
                    strict_mode = false, ignore_errors = true, store_rejects = true,
                    compression = '{packing}', max_line_size = {MAX_LINE_OCTETS},
                    buffer_size = {BUFFER_OCTETS})))"""


def _checked(name: str, kind: str) -> str:
    if kind == "DOUBLE":
        return f'CASE WHEN f."{name}" BETWEEN 0 AND {MOST_MS} THEN f."{name}" END'
    return f'CASE WHEN f."{name}" >= 0 THEN f."{name}" END' if kind == "BIGINT" else f'f."{name}"'


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _first_octets(stream: BinaryIO) -> bytes:
    octets = b""
    while len(octets) < inputs.MAGIC_OCTETS:
        more = stream.read(inputs.MAGIC_OCTETS - len(octets))
        if not more:
            break
        octets += more
    return octets


class _Joined(io.RawIOBase):
    """A stream that the first octets were taken from, whole again; it ends early once `ending` is set."""

    def __init__(self, first: bytes, rest: BinaryIO, ending: threading.Event) -> None:
        self._first = first
        self._rest = rest
        self._ending = ending

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = CHUNK_OCTETS if size < 0 else size
        taken, self._first = self._first[:size], self._first[size:]
        if taken:
            return taken
        # Whoever writes may be silent for long, and DuckDB waits for us even when it is told to stop.
        while not select.select([self._rest], [], [], POLL_S)[0]:
            if self._ending.is_set():
                return b""
        return self._rest.read(size)


def _feed(pipe: Path, source: Callable[[], Callable[[int], bytes]], read: Read) -> None:
    """Copy a source into a pipe, up to its end or to where it can't be unpacked any more."""
    with contextlib.suppress(BrokenPipeError), pipe.open("wb") as out:
        for chunk in _chunks(source, read):
            out.write(chunk)


def _chunks(source: Callable[[], Callable[[int], bytes]], read: Read) -> Iterator[bytes]:
    try:
        read_some = source()
        while chunk := read_some(CHUNK_OCTETS):
            yield chunk
    except (EOFError, OSError, zlib.error) as error:
        read.problem = f"only its beginning could be read: {error}"

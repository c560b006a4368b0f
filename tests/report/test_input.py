"""What a log may be: packed, piped, rotated away, damaged, no log at all."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from gpop.commands import report as report_command
from gpop.events import printable
from tests.report.conftest import Driven, Run, refusal, session, write
from tests.serving import wait_until

TIMEOUT_S = 60
REPORT = [sys.executable, "-m", "gpop", "report"]


def packed_with_zstd(source: Path, target: Path) -> Path:
    """DuckDB writes zstd, the standard library does not yet."""
    duckdb.execute(
        f"COPY (SELECT line FROM read_csv('{source}', columns = {{'line': 'VARCHAR'}}, delim = '\U0010ffff', "
        f"quote = '', escape = '', header = false, auto_detect = false)) TO '{target}' "
        f"(FORMAT csv, COMPRESSION zstd, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\x01')"
    )
    assert target.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    return target


def piped(octets: bytes, *arguments: str) -> dict[str, object]:
    """The report on what comes from standard input."""
    done = subprocess.run(
        [*REPORT, "--json", *arguments, "-"], input=octets, capture_output=True, timeout=TIMEOUT_S, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("packing", ["plain", "gzip", "zstd"])
def test_packed_logs_are_read(tmp_path: Path, driven: Driven, report: Run, packing: str) -> None:
    """From a file and from standard input, told by their first octets, not by their names."""
    path = tmp_path / "log.1"
    if packing == "zstd":
        packed_with_zstd(driven.path, path)
    else:
        octets = driven.path.read_bytes()
        path.write_bytes(gzip.compress(octets) if packing == "gzip" else octets)
    expected = report("--json", driven.path).json()["cache"]
    assert report("--json", path).json()["cache"] == expected
    assert piped(path.read_bytes())["cache"] == expected


def test_files_and_patterns(tmp_path: Path, driven: Driven, report: Run) -> None:
    """Many logs are one report; one that is named twice, or by two names, is read once."""
    octets = driven.path.read_bytes()
    (tmp_path / "gpop.log").write_bytes(octets)
    (tmp_path / "gpop.log.1").write_bytes(octets)
    (tmp_path / "gpop.log.2.gz").write_bytes(gzip.compress(octets) + gzip.compress(octets))
    # Characters that DuckDB would take for a pattern, or for the end of a string.
    odd = tmp_path / "it's [odd] * name.log"
    odd.write_bytes(octets)
    (tmp_path / "again.log").symlink_to(odd)
    found = report("--json", tmp_path / "gpop.log*", odd, odd, tmp_path / "again.log").json()
    assert found["sessions"]["sessions"] == 5 * driven.sessions
    assert [Path(each["name"]).name for each in found["report"]["inputs"]] == [
        "gpop.log", "gpop.log.1", "gpop.log.2.gz", odd.name,
    ]  # fmt: skip


def test_a_pipe_is_a_log(tmp_path: Path, driven: Driven, report: Run) -> None:
    """A named pipe, as a shell makes of <(zcat ...), is read like standard input."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cp", driven.path, pipe]):
        assert report("--json", pipe).json()["sessions"]["sessions"] == driven.sessions


def test_damaged_lines_are_counted_and_shown(tmp_path: Path, report: Run) -> None:
    """Whatever stands between gpop's lines: it is counted, its place is said, and nothing else is lost."""
    damaged = [
        b"2026-11-25 10:00:00 supervisord: " + json.dumps(session()).encode(),
        b'{"ts": "2026-11-25T10:00:00.000Z", "event": "session_cl',
        b'{"ts": "no time", "event": "session_closed"}',
        b'{"ts": "290000-01-01T00:00:00Z", "event": "session_closed"}',
        b'{"ts": "infinity", "event": "session_closed"}',
        b'{"ts": "2026-11-25T10:00:00.000Z"}',
        b'{"event": "session_closed"}',
        b"[1, 2]", b'"text"', b"null", b"42",
        b'"a quote', b"a \\ backslash", b"# comment", b"a,b,c", b"nul \x00 nul", "a \U0010ffff b".encode(),
        b"no UTF-8 \xff\xfe",
        b"x" * 100_000,
    ]  # fmt: skip
    good = json.dumps(session()).encode()
    path = tmp_path / "log"
    path.write_bytes(
        b"\n".join([good, b"", b"   ", *(line for each in damaged for line in (each, good)), b""])
    )
    found = report("--json", path).json()
    assert found["sessions"]["sessions"] == 1 + len(damaged)
    assert found["report"]["damaged"]["lines"] == len(damaged)
    first = found["report"]["damaged"]["first"]
    assert [each["line"] for each in first] == [4 + 2 * number for number in range(len(first))]
    assert {each["file"] for each in first} == {str(path)}
    assert first[0]["text"].startswith("2026-11-25 10:00:00 supervisord: {")
    shown = report(path)
    assert shown.status == 0 and f"{path}:4: 2026-11-25" in "".join(shown.out.split("\n"))


def test_lines_after_those_that_are_no_text_keep_their_numbers(tmp_path: Path, report: Run) -> None:
    """A line that is no UTF-8 counts as a line."""
    path = tmp_path / "log"
    good = json.dumps(session()).encode()
    path.write_bytes(b"\n".join([good, b"\xff", good, b"\xfe", b"damaged", good]) + b"\n")
    found = report("--json", path).json()["report"]["damaged"]
    assert [(each["line"], each["text"]) for each in found["first"]][-1] == (5, "damaged")
    assert [each["line"] for each in found["first"]] == [2, 4, 5]


def test_values_that_gpop_does_not_write_are_no_fault(tmp_path: Path, report: Run) -> None:
    """Numbers where text is due, and numbers that are none: the line counts, and they do not."""
    lines = [
        json.dumps(session(cache_ms=-5, messages=-1, duration_ms="soon")),
        json.dumps(session()).replace("0.2", "1e999"),
        json.dumps(session(octets=10**30, user=["a"], cache={"a": 1}, close_reason=7)),
        json.dumps(session(event="future_event", level=None)),
    ]
    found = report("--json", write(tmp_path / "log", *lines))
    assert found.status == 0 and found.json()["sessions"]["sessions"] == 3
    for form in (["--csv", "slowest"], ["--html", tmp_path / "page"], []):
        assert report(*form, tmp_path / "log").status == 0


def test_a_binary_file_is_damaged_lines(tmp_path: Path, report: Run) -> None:
    """Named by mistake, it ends nothing and fills nothing."""
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 5000)
    (tmp_path / "zeros").write_bytes(bytes(40_000_000))
    found = report("--json", tmp_path / "binary", tmp_path / "zeros").json()
    assert found["sessions"]["sessions"] == 0 and found["report"]["damaged"]["lines"] > 0


def test_a_log_that_was_cut_short_is_read_as_far_as_it_goes(
    tmp_path: Path, driven: Driven, report: Run
) -> None:
    """Of a gzip file without its end the beginning counts; the others too; and the exit status says so."""
    whole = gzip.compress(driven.path.read_bytes())
    cut = tmp_path / "cut.gz"
    cut.write_bytes(whole[: len(whole) - 40])
    found = report("--json", cut, driven.path)
    assert found.status == 1 and f"{cut}: only its beginning could be read" in found.err
    assert driven.sessions < found.json()["sessions"]["sessions"] <= 2 * driven.sessions
    assert [bool(each["problem"]) for each in found.json()["report"]["inputs"]] == [True, False]


def test_what_is_no_log_is_named(tmp_path: Path, report: Run) -> None:
    """All that is wrong with the arguments is said at once, and nothing is read."""
    (tmp_path / "log.bz2").write_bytes(bz2.compress(b"{}\n"))
    found = report(tmp_path, tmp_path / "absent", tmp_path / "log.bz2", tmp_path / "none*")
    assert (found.status, found.out) == (2, "")
    for words in ("is a directory", "absent: No such file", "packed with bzip2", "none*: No such file"):
        assert words in found.err, words


def test_archives(tmp_path: Path, driven: Driven, report: Run) -> None:
    """What goes into an archive comes out of it: the same report; beside other logs; and narrowed."""
    archive = tmp_path / "2026.parquet"
    written = report("--parquet", archive, driven.path)
    assert written.status == 0 and "lines" in written.err
    first, second = (report("--json", each).json() for each in (driven.path, archive))
    for varying in ("report", "findings"):
        del first[varying], second[varying]
    assert first == second
    both = report("--json", archive, driven.path).json()
    assert both["sessions"]["sessions"] == 2 * driven.sessions
    assert report("--json", "--user", "nobody", archive).json()["sessions"]["sessions"] == 0
    assert list(tmp_path.iterdir()) == [archive]


def test_another_parquet_file_is_no_archive(tmp_path: Path, report: Run) -> None:
    """It is told what is missing; one with other types is read as far as they go."""
    other, odd = tmp_path / "other.parquet", tmp_path / "odd.parquet"
    duckdb.execute(f"COPY (SELECT 1 AS a) TO '{other}' (FORMAT parquet)")
    duckdb.execute(
        "COPY (SELECT '2026-11-25 10:00:00' AS ts, 'session_closed' AS event, 'x' AS messages, "
        "'hit' AS cache) "
        f"TO '{odd}' (FORMAT parquet)"
    )
    found = report("--json", other)
    assert found.status == 1 and "no archive of gpop's: it has no column event, ts" in found.err
    assert report("--json", odd).json()["cache"]["hit"] == 1
    other.write_bytes(b"PAR1" + bytes(100))
    assert report("--json", other).status == 1


def test_since_until_and_user(tmp_path: Path, report: Run) -> None:
    """Only what was asked for is in the report: from a time on, before a time, of a user or account."""
    log = write(
        tmp_path / "log",
        session(ts="2025-11-25T10:00:00.000Z", user="anna@example.org"),
        session(ts="2025-11-25T11:00:00.000Z", account="bert", user="bert"),
        session(ts="2025-11-25T12:00:00.000Z", account="o'hara", user="o'hara"),
        refusal(ts="2025-11-25T12:00:00.000Z", user="anna@example.org"),
    )

    def sessions(*arguments: str) -> int:
        return int(report("--json", *arguments, log).json()["sessions"]["sessions"])

    assert sessions("--since", "2025-11-25T11:00") == 2
    assert sessions("--since", "2025-11-25T12:30+01:00") == 1
    assert sessions("--until", "2025-11-25T11:00") == 1
    assert sessions("--since", "2025-11-25", "--until", "2025-11-26") == 3
    assert sessions("--since", "1000000h") == 3 and sessions("--since", "1m") == 0
    assert (
        sessions("--user", "anna")
        == sessions("--user", "anna@example.org")
        == sessions("--user", "o'hara")
        == 1
    )
    found = report("--json", "--user", "anna@example.org", log).json()
    assert found["refused"]["refused"] == 1 and found["report"]["user"] == "anna@example.org"


def test_a_user_is_named_as_the_shell_has_the_name(tmp_path: Path, report: Run) -> None:
    """Octets that are no text stand escaped in the log; to ask for them was an error of DuckDB's."""
    name = b"caf\xe9\x1b[31m"
    log = write(tmp_path / "log", session(), session(user=printable(name), account=printable(name)))
    for words in (os.fsdecode(name), printable(name)):
        assert report("--json", "--user", words, log).json()["sessions"]["sessions"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--since", "yesterday"], "is no time"),
        (["--since", "2026-13-01"], "is no time"),
        (["--until", "0001-01-01"], "is no time"),
        (["--since", "99999999999999d"], "is no time"),
        (["--since", "2026-11-26", "--until", "2026-11-25"], "--since is not before --until"),
        (["--csv", "nothing"], "refused_by_address"),
        (["--top", "0"], "no number from 1 to 1000"),
        (["--follow", "--html", "page"], "--follow takes one LOG"),
        (["--follow", "--interval", "nan"], "no number of seconds"),
        (["--html", "/nonexistent/page.html"], "there is no folder /nonexistent"),
        (["-"], "standard input) can be read only once"),
    ],
)
def test_a_wrong_command_line_says_what_would_be_right(
    driven: Driven, report: Run, arguments: list[str], words: str
) -> None:
    """Exit status 2, nothing on standard output, and the words that help."""
    found = report(*arguments, "-" if "-" in arguments else driven.path)
    assert (found.status, found.out) == (2, "")
    assert words in found.err


def test_where_it_can_t_write_is_named(tmp_path: Path, driven: Driven, report: Run) -> None:
    """No folder for temporary files, no place for the page: the path, of the page before all reading."""
    found = report("--temporary", "/nonexistent", driven.path)
    assert found.status == 1 and "/nonexistent" in found.err
    (tmp_path / "page.html").mkdir()
    found = report("--html", tmp_path / "page.html", driven.path)
    assert found.status == 2 and "page.html: not a regular file" in found.err


def test_without_a_log_there_is_help(report: Run) -> None:
    """Nothing named is said; the tables of --csv are, without a log."""
    assert "name a LOG" in report().err
    found = report("--csv", "help")
    assert found.status == 0 and "refused_by_address" in found.out


@pytest.mark.parametrize("missing", ["duckdb", "rich"])
def test_a_missing_package_is_named(tmp_path: Path, driven: Driven, missing: str) -> None:
    """Whoever installed gpop without the extra is told its name."""
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('gone', name='{missing}')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*REPORT, driven.path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    assert (
        missing in done.stderr
        and f"`{sys.executable} -m pip install 'gpop[report]'` brings it" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_nothing_is_left_behind(tmp_path: Path, driven: Driven) -> None:
    """The temporary folder is gone, also if whoever reads the report has gone."""
    command = [*REPORT, "--temporary", tmp_path, driven.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_can_be_ended_while_it_waits(tmp_path: Path, driven: Driven, number: int, status: int) -> None:
    """Ctrl-C and SIGTERM end it in order, also if whoever writes to its standard input is silent."""
    command = [*REPORT, "--temporary", tmp_path, "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stderr
        process.stdin.write(driven.path.read_bytes())
        process.stdin.flush()
        wait_until(lambda: list(tmp_path.glob("*/pipe")), 30, "DuckDB to read")
        process.send_signal(number)
        assert process.wait(30) == status
        assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--html", "--parquet"])
def test_it_replaces_nothing_but_what_it_wrote(
    tmp_path: Path, driven: Driven, report: Run, option: str
) -> None:
    """`--html gpop.log gpop.log.1`, a word forgotten, made a page of the log, and root one of /dev/null."""
    log, pipe, written = tmp_path / "gpop.log", tmp_path / "pipe", tmp_path / "written"
    log.write_bytes(driven.path.read_bytes())
    os.mkfifo(pipe)
    found = report(option, log, driven.path)
    assert found.status == 2 and "gpop.log: something else is there" in found.err
    assert log.read_bytes() == driven.path.read_bytes()
    found = report(option, pipe, driven.path)
    assert found.status == 2 and "not a regular file" in found.err and pipe.is_fifo()
    for _ in range(2):
        assert report(option, written, driven.path).status == 0
    assert sorted(tmp_path.iterdir()) == [log, pipe, written]


def test_what_is_printed_has_no_room(driven: Driven) -> None:
    """A full disk behind `>`: a line and exit status 1, no traceback."""
    with open("/dev/full", "wb") as full:
        command = [*REPORT, "--json", driven.path]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 1
    assert done.stderr == b"gpop report: what it prints can't be written: No space left on device\n"


def test_a_page_for_which_there_is_no_room(
    tmp_path: Path, driven: Driven, report: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, and not the folder of temporary files; what was there stays, and nothing beside it."""
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html> of before")
    whole = report_command._replace

    def with_little_room(path: Path, text: str) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))
        try:
            whole(path, text)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(report_command, "_replace", with_little_room)
    found = report("--html", page, driven.path)
    assert (found.status, found.err) == (1, f"gpop report: {page}: File too large\n")
    assert list(tmp_path.iterdir()) == [page] and page.read_text().endswith("of before")

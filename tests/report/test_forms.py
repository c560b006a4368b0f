"""How a report looks: terminal, CSV, JSON and page; and that a name in a log is a name and nothing else."""

from __future__ import annotations

import csv
import html.parser
import io
import itertools
import json
import math
import re
from importlib.resources import files
from pathlib import Path

import pytest

from gpop.report import charts, pictures, words
from gpop.report.tables import TABLES
from tests.report.conftest import Driven, Run, refusal, session, write

HOSTILE = (
    "<script>alert(1)</script>",
    "\x1b]0;title\x07\x1b[2J\x1b[31mred",
    "=HYPERLINK(\"http://example.org\";\"x\")",
    "@SUM(A1)",
    "-2+3",
    "\u202eevil\u202c",
    "a\r\nb\tc",
    "' OR 1=1 --",
    "[bold red]markup[/]",
    "\udcff",
    "x" * 400,
    "\" onmouseover=\"alert(1)",
)  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A log in which every field that a stranger can choose is chosen by one."""
    lines = []
    for name in HOSTILE:
        lines += [
            session(account=name, user=name, peer=name, cache_reason=name, tls=name, close_reason=name)
        ] * 3
        lines += [
            session(
                account=name, cache="refresh", auth_source=name, mechanism=name, fault=name, level="error"
            )
        ]
        lines += [session(account=f"{name} never", cache="refresh", cache_reason=name)] * 3
        lines += [refusal(peer=name, user=name, reason=name, code=name), refusal(event=name, detail=name)]
        lines += [f"damaged {name!r} {name}".replace("\udcff", "?").replace("\r\n", " ")]
    path = tmp_path / "<b>log"
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return path


def is_plain(text: str) -> bool:
    """Nothing in it that a terminal would act upon, or that would turn what is read around."""
    return all(character.isprintable() or character == "\n" for character in text)


def test_a_terminal_gets_text_only(hostile: Path, report: Run) -> None:
    """Escapes, control characters and reversed text are shown as what they are; so are square brackets."""
    shown = report(hostile)
    assert shown.status == 0 and is_plain(shown.out)
    assert "\\x1b]0;title" in shown.out and "[bold red]markup[/]" in shown.out.replace("\n", "")
    assert is_plain(report("--json", hostile).out)


def test_no_line_is_wider_than_the_terminal(hostile: Path, driven: Driven, report: Run) -> None:
    """80 columns are enough for each table, however long names and figures are."""
    for log in (hostile, driven.path):
        assert max(len(line.rstrip()) for line in report(log).out.splitlines()) <= 80


def test_figures_are_whole_at_80_columns(tmp_path: Path, report: Run) -> None:
    """Large numbers are not cut off."""
    lines = [
        session(
            ts=f"2026-11-{day}T{hour:02}:30:00.000Z",
            messages=123_456,
            octets=10**10,
            cache=cache,
            cache_ms=9876.5,
        )
        for day in (10, 20)
        for hour in range(24)
        for cache in ("hit", "refresh", "rebuild")
    ]
    shown = report(write(tmp_path / "log", *lines)).out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    assert "11-20 00:00" in shown and "9,876" in shown and "10.0 GB" in shown and "\u2026" not in shown


@pytest.mark.parametrize("name", ["user00016", "somebody.with.a.long.name@example.org"])
def test_no_figure_loses_its_unit(tmp_path: Path, report: Run, name: str) -> None:
    """Of the slowest sessions on 80 columns: what has no room is left out, and not "319.6" for kB."""
    line = session(account=name, cache="rebuild", cache_ms=73.2, octets_sent=319_600, retr=50)
    shown = report(write(tmp_path / "log", line)).out
    rows = shown[shown.index("The slowest sessions") : shown.index("What clients did")].splitlines()
    assert len(rows) > 4 and max(map(len, rows)) <= 80
    assert "sent" not in rows[2].split() or any(row.rstrip().endswith(" 319.6 kB") for row in rows)
    assert name != "user00016" or "sent" in rows[2].split()


@pytest.mark.parametrize("width", [80, 120, 170, 200])
def test_every_column_has_room(
    tmp_path: Path, report: Run, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Whatever the terminal's width: no heading and no size class is cut off, no line is too long."""
    lines = [
        session(messages=10**power, cache=cache, cache_reason="new_changed", cache_ms=10.0**power)
        for power in range(6)
        for cache in ("hit", "refresh", "rebuild")
    ] * 500
    log = write(tmp_path / "log", *lines, session(messages=10**6))
    monkeypatch.setenv("COLUMNS", str(width))
    shown = report(log).out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    for name in ("100,000-299,999", "300,000 and more", "from (UTC)", "if not, mostly"):
        assert name in shown, name


@pytest.mark.parametrize("table", [table.name for table in TABLES])
def test_csv_holds_no_formula(hostile: Path, report: Run, table: str) -> None:
    """A spreadsheet shows every cell and computes none; rows are whole, and headed as in --json."""
    shown = report("--csv", table, hostile)
    assert shown.status == 0 and is_plain(shown.out)
    rows = list(csv.reader(io.StringIO(shown.out)))
    assert len(rows) > 1 and {len(row) for row in rows} == {len(rows[0])}
    for cell in itertools.chain.from_iterable(rows):
        assert not cell.startswith(("=", "@", "+", "|", "%")), cell
        assert not cell.startswith("-") or re.fullmatch(r"-[0-9.e-]+", cell), cell


class Page(html.parser.HTMLParser):
    """What is in a page: its elements balanced, its attributes, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, text: str) -> None:
        self.texts.append(text)


def page_of(report: Run, tmp_path: Path, log: Path) -> tuple[str, Page]:
    target = tmp_path / "page.html"
    assert report("--html", target, log).status == 0
    text = target.read_text("utf-8")
    return text, Page(text)


def test_a_page_needs_nothing_and_runs_nothing(tmp_path: Path, hostile: Path, report: Run) -> None:
    """Well formed, no script, no address of anything; hostile names stand in it as text."""
    text, page = page_of(report, tmp_path, hostile)
    assert page.open == []
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "base", "form", "a", "b"} - {"b"}
    assert "default-src 'none'" in text
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "action"):
            assert value == "data:,"
    assert "url(" not in text and "@import" not in text
    assert any("<script>alert(1)</script>" in each for each in page.texts)
    assert is_plain(text)


def test_every_axis_says_its_unit(tmp_path: Path, driven: Driven, report: Run) -> None:
    """Titles of axes end in a unit in brackets, or name it; marks have titles; both widths are there."""
    text, _ = page_of(report, tmp_path, driven.path)
    titles = set(re.findall(r'class="axis">([^<]+)<', text))
    assert {
        "share of sessions (%)",
        "sessions (number)",
        "time (ms, by powers of ten)",
        "time of a rebuild (ms)",
    } <= titles
    for title in titles:
        assert re.search(r"\(.*(%|number|ms|s|min|h|d|UTC|powers of ten).*\)", title), title
    assert text.count('class="wide"') == text.count('class="narrow"') == 6
    for mark in re.findall(r"<(?:rect|circle)[^>]*>(.*?)</(?:rect|circle)>", text):
        assert mark.startswith("<title>"), mark


def test_a_log_of_ten_lines_and_one_of_years_are_drawn(tmp_path: Path, report: Run) -> None:
    """No chart falls over figures that are few, many, all zero or far apart."""
    for lines in (
        [session(cache_ms=0.0, duration_ms=0.0)],
        [session(cache=None, cache_ms=0.0)],
        [session(cache="off", cache_reason="disabled", messages=2_000_000, cache_ms=1e9, duration_ms=1e9)],
        [
            session(ts=f"20{year}-01-01T00:00:00.000Z", cache="rebuild", cache_ms=10.0**-year)
            for year in range(10, 26)
        ],
        [refusal()],
    ):
        _, page = page_of(report, tmp_path, write(tmp_path / "log", *lines))
        assert page.open == []


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_names_below_an_axis_do_not_overlap(width: int) -> None:
    """Names of slots have room beside each other, however many slots there are."""
    for slots in (["00:00"] * 7, ["11-25 10:00"] * 101, [f"{10**n} ms" if n % 2 else "" for n in range(12)]):
        frame = charts.Frame(width, 200, charts.counts("sessions (number)", 10**9))
        drawn = re.findall(
            r'x="([0-9.]+)"[^>]*class="tick">([^<]+)<', "".join(frame.below("time (s)", slots))
        )
        ends = [(float(x) - len(name) * 6 / 2, float(x) + len(name) * 6 / 2) for x, name in drawn]
        assert ends and ends[0][0] >= 0 and ends[-1][1] <= width
        assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))


def test_units_of_values() -> None:
    """Numbers are said with a unit that fits."""
    said = [
        words.seconds(value) for value in (0, 0.0042, 0.25, 3.14159, 42, 119, 300, 7199, 86400, 10**6, -0.5)
    ]
    assert said == [
        "0 s",
        "4.2 ms",
        "0.25 s",
        "3.1 s",
        "42 s",
        "119 s",
        "5.0 min",
        "120 min",
        "24 h",
        "12 d",
        "-0.50 s",
    ]
    assert [words.octets(value) for value in (0, 999, 1000, 5 * 10**9)] == ["0", "999", "1.0 kB", "5.0 GB"]
    assert [words.percent(value) for value in (0, 0.00001, 0.5, 1)] == [
        "0.0 %",
        "<0.1 %",
        "50.0 %",
        "100.0 %",
    ]
    assert [pictures.size(low, high) for low, high in ((0, 0), (3, 9), (1000, 2999), (300_000, None))] == [
        "0",
        "3-9",
        "1k-3k",
        "300k+",
    ]


# Colours

SIMULATED = {
    "all colours": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "no green": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "no blue": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}
Linear = tuple[float, ...]


def linear(colour: str) -> Linear:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return tuple(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)


def seen(colour: Linear, matrix: tuple[Linear, ...]) -> Linear:
    return tuple(min(1.0, max(0.0, sum(a * b for a, b in zip(row, colour, strict=True)))) for row in matrix)


def lab(colour: Linear) -> Linear:
    """CIE L*a*b*, in which distances are what eyes make of them."""
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    x, y, z = (
        part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116
        for part in (each / of for each, of in zip(seen_sum(colour, rows), white, strict=True))
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def seen_sum(colour: Linear, rows: tuple[Linear, ...]) -> Linear:
    return tuple(sum(a * b for a, b in zip(row, colour, strict=True)) for row in rows)


def luminance(colour: str) -> float:
    return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def themes() -> dict[str, dict[str, str]]:
    style = files("gpop.report").joinpath("page.css").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    )
    return {"light": light, "dark": dark}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_apart(theme: str) -> None:
    """By everybody: outcomes are far apart whatever cones an eye lacks, and stand out of the paper."""
    colours = themes()[theme]
    outcomes = [colours[name] for name in ("hit", "refresh", "rebuild", "off")]
    for colour in outcomes:
        assert contrast(colour, colours["paper"]) >= 3, colour
    for text in ("ink", "soft"):
        for behind in ("paper", "card"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for eye, matrix in SIMULATED.items():
        for one, other in itertools.combinations(outcomes, 2):
            assert math.dist(*(lab(seen(linear(each), matrix)) for each in (one, other))) > 25, (
                eye,
                one,
                other,
            )

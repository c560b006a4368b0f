"""
Charts as SVG: columns, lines, a heat map, bars. PURE: figures in, text out.

Each is drawn for a width in CSS pixels and never scaled, so that its letters keep their size; the page has
a wide and a narrow one of each, and shows the one that fits. Colours are classes; the page's style says what
they are in light and dark. Every mark says what it is in a <title>, every axis its unit. Text from a log is
the caller's to clean; it is escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

WIDE, NARROW = 920, 340
LETTER = 6.6  # width of one in the font of the axes, rather too wide
LINE = 14
TICKS = {WIDE: 10, NARROW: 4}
TOP, BOTTOM, RIGHT = 22, 40, 12


@dataclass
class Series:
    """Values of one kind, in the order of the chart's slots; None where there is none. `style` is a class."""

    name: str
    style: str
    values: Sequence[float | None]


@dataclass
class Axis:
    """What an axis says: its title with the unit, and for a value the text at a tick."""

    title: str
    logarithmic: bool = False
    most: float = 0.0
    ticks: Sequence[tuple[float, str]] = field(default_factory=list)


def text(x: float, y: float, words: str, style: str = "tick", anchor: str = "start", turn: int = 0) -> str:
    """Text, escaped; `turn` in degrees about its place."""
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}'
    return f'<text {place} class="{style}">{html.escape(words)}</text>'


def rect(x: float, y: float, width: float, height: float, style: str, title: str = "", more: str = "") -> str:
    """A rectangle that says what it is."""
    told = f"<title>{html.escape(title)}</title>" if title else ""
    size = f'width="{max(0.0, width):.2f}" height="{max(0.0, height):.2f}"'
    return f'<rect x="{x:.2f}" y="{y:.2f}" {size} class="{style}"{more}>{told}</rect>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def svg(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """A drawing of that size; `label` is what is read aloud."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{html.escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


class Frame:
    """The place of a chart with two axes: from values to pixels, and the axes themselves."""

    def __init__(self, width: float, height: float, vertical: Axis) -> None:
        self.width, self.height, self.vertical = width, height, vertical
        widest = max((len(words) for _, words in vertical.ticks), default=1)
        # The same for most, so that charts below each other line up.
        self.left = max(46.0, widest * LETTER + 12)
        self.across = width - self.left - RIGHT
        self.down = height - TOP - BOTTOM

    def y(self, value: float) -> float:
        """The pixel of a value; what is below a logarithmic axis is at its foot."""
        axis = self.vertical
        if axis.logarithmic:
            low, high = math.log10(axis.ticks[0][0]), math.log10(axis.most)
            part = (math.log10(max(value, axis.ticks[0][0])) - low) / (high - low)
        else:
            part = value / axis.most if axis.most else 0.0
        return TOP + self.down * (1 - min(1.0, part))

    def x(self, part: float) -> float:
        """The pixel of a place between 0 and 1."""
        return self.left + self.across * part

    def grid(self) -> list[str]:
        """Lines and words of the vertical axis, whose title stands above it."""
        parts = [text(0, 12, self.vertical.title, "axis")]
        for value, words in self.vertical.ticks:
            y = self.y(value)
            parts += [
                line(self.left, y, self.width - RIGHT, y, "grid"),
                text(self.left - 6, y + 4, words, "tick", "end"),
            ]
        return parts

    def below(self, title: str, slots: Sequence[str], between: bool = False) -> list[str]:
        """Words of the horizontal axis: names as there is room for; `between`: of the slots' edges."""
        parts = [text(self.x(0.5), self.height - 4, title, "axis", "middle")]
        count = len(slots) - between
        named = [number for number, name in enumerate(slots) if name]
        widest = max((len(name) for name in slots), default=1) * LETTER + 14
        every = max(1, math.ceil(widest * len(named) / max(1.0, self.across)))
        for number in named[::every]:
            x = self.x((number + (0 if between else 0.5)) / max(1, count))
            half = len(slots[number]) * LETTER / 2
            x = min(max(x, half), self.width - half)
            parts.append(text(x, self.height - BOTTOM + 16, slots[number], "tick", "middle"))
        return parts


def columns(
    width: float,
    height: float,
    vertical: Axis,
    horizontal: str,
    slots: Sequence[str],
    series: Sequence[Series],
    tell: Sequence[Sequence[str]],
    label: str,
    between: bool = False,
) -> str:
    """Stacked columns; `tell[series][slot]` is what a piece says. `between`: edges have names."""
    frame = Frame(width, height, vertical)
    parts = frame.grid()
    count = len(slots) - between
    step = frame.across / max(1, count)
    gap = 1.0 if step > 3 else 0.0
    # One column of a page's width would be a wall.
    wide = min(step - gap, 60.0)
    for slot in range(count):
        foot = 0.0
        left = frame.x(slot / count) + (step - wide) / 2
        for number, each in enumerate(series):
            value = each.values[slot]
            if value:
                top, bottom = frame.y(foot + value), frame.y(foot)
                parts.append(rect(left, top, wide, bottom - top, each.style, tell[number][slot]))
                foot += value
    parts += frame.below(horizontal, slots, between)
    return svg(width, height, label, parts)


def lines(
    width: float,
    height: float,
    vertical: Axis,
    horizontal: str,
    slots: Sequence[str],
    series: Sequence[Series],
    tell: Sequence[Sequence[str]],
    label: str,
) -> str:
    """Lines through the middles of slots, broken where there is no value; a point alone is a dot."""
    frame = Frame(width, height, vertical)
    parts = frame.grid()
    for number, each in enumerate(series):
        points = [
            (frame.x((slot + 0.5) / len(slots)), frame.y(value)) if value is not None else None
            for slot, value in enumerate(each.values)
        ]
        parts += [f'<path d="{_path(run)}" class="{each.style}"/>' for run in _runs(points) if len(run) > 1]
        for slot, point in enumerate(points):
            if point:
                alone = _is_alone(points, slot)
                place = f'cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="{3 if alone else 6}"'
                title = html.escape(tell[number][slot])
                style = each.style if alone else "touch"
                parts.append(f'<circle {place} class="{style}"><title>{title}</title></circle>')
    parts += frame.below(horizontal, slots)
    return svg(width, height, label, parts)


Point = tuple[float, float]


def _runs(points: Sequence[Point | None]) -> list[list[Point]]:
    runs: list[list[Point]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _is_alone(points: Sequence[Point | None], slot: int) -> bool:
    before = points[slot - 1] if slot else None
    after = points[slot + 1] if slot + 1 < len(points) else None
    return before is None and after is None


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def heat(
    width: float,
    titles: tuple[str, str],
    slots: Sequence[str],
    levels: Sequence[str],
    cells: dict[tuple[int, int], tuple[float, str]],
    label: str,
) -> str:
    """
    A heat map: `slots` from left to right, `levels` from the bottom up, named at their edges.

    `cells[slot, level]` is how dark (0 to 1) and what it says; others stay empty. `titles`: of both axes.
    """
    row = 24
    ticks = [(float(number), name) for number, name in enumerate(levels)]
    down = row * max(1, len(levels) - 1)
    frame = Frame(
        width, down + TOP + BOTTOM, Axis(titles[1], most=float(max(1, len(levels) - 1)), ticks=ticks)
    )
    parts = frame.grid()
    step = frame.across / max(1, len(slots))
    for (slot, level), (dark, tell) in sorted(cells.items()):
        # Nothing is so rare that it can't be seen.
        opacity = f' fill-opacity="{0.12 + 0.88 * dark:.2f}"'
        left, top = frame.x(slot / len(slots)), frame.y(level + 1)
        parts.append(rect(left + 1, top + 1, step - 2, row - 2, "heat", tell, opacity))
    parts += frame.below(titles[0], slots)
    return svg(width, frame.height, label, parts)


def bars(
    width: float,
    horizontal: Axis,
    slots: Sequence[str],
    series: Sequence[Series],
    words: Sequence[Sequence[str]],
    label: str,
) -> str:
    """For each slot a bar of each series, with its value in words behind it."""
    height_of_bar, gap = 13, 10
    each = height_of_bar * len(series) + gap
    left = max((len(name) for name in slots), default=1) * LETTER + 10
    room = max((len(word) for some in words for word in some), default=1) * LETTER + 12
    across, foot = width - left - room, TOP + each * len(slots)
    parts = [text(0, 12, horizontal.title, "axis")]
    every = max(1, math.ceil(len(horizontal.ticks) * 8 * LETTER / across))
    for value, name in horizontal.ticks[::every]:
        x = left + across * value / horizontal.most
        parts += [line(x, TOP, x, foot, "grid"), text(x, foot + 16, name, "tick", "middle")]
    for slot, name in enumerate(slots):
        top = TOP + each * slot + gap / 2
        parts.append(text(left - 8, top + height_of_bar * len(series) / 2 + 3, name, "tick", "end"))
        for number, some in enumerate(series):
            y, word = top + number * height_of_bar, words[number][slot]
            long = across * max(0.0, some.values[slot] or 0.0) / horizontal.most
            parts.append(rect(left, y, max(long, 0.5), height_of_bar - 2, some.style, word))
            parts.append(text(left + long + 5, y + height_of_bar - 3, word, "tick"))
    return svg(width, foot + 24, label, parts)


# Axes


def decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that hold all the values between them, at least one decade."""
    positive = [value for value in values if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive)) + 1e-9)
    return low, max(low + 1, math.ceil(math.log10(max(positive)) - 1e-9))


def shares(title: str) -> Axis:
    """An axis from nothing to all."""
    return Axis(title, most=1.0, ticks=[(part / 4, f"{25 * part} %") for part in range(5)])


def counts(title: str, most: float) -> Axis:
    """An axis of whole numbers from 0."""
    return amounts(title, most, least_step=1.0)


def amounts(title: str, most: float, least_step: float = 0.0) -> Axis:
    """An axis from 0, in some four steps of 1, 2 or 5."""
    if most <= 0:
        return Axis(title, most=1.0, ticks=[(0.0, "0"), (1.0, "1")])
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = max(least_step, next(power * nice for nice in (1, 2, 5, 10) if power * nice >= most / 4))
    last = math.ceil(most / step)
    return Axis(
        title, most=last * step, ticks=[(number * step, short(number * step)) for number in range(last + 1)]
    )


def logarithmic(title: str, values: Sequence[float], unit: float = 1.0) -> Axis:
    """An axis by powers of ten."""
    low, high = decades(values)
    ticks = [(10.0**power, plain(10.0**power / unit)) for power in range(low, high + 1)]
    return Axis(title, True, 10.0**high, ticks)


def short(value: float) -> str:
    """A number in few letters: 950, 12k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def plain(value: float) -> str:
    """A number without an exponent: 0.01, 1, 1,000."""
    return f"{value:,.0f}" if value >= 1 else f"{value:.10f}".rstrip("0")

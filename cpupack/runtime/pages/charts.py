"""Charts as plain shapes: what to draw where. ``templates/charts.html.j2`` turns them into inline SVG.

Every value must be finite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .axes import Axis, PercentAxis, linear, logarithmic
from .shapes import CHAR, WIDTH, Chart, Dot, Labels, Line, Mark, Path, Plot, Rect, Text, rounded

SERIES = 6
"""Colours that the style has; a seventh series takes the first again."""


@dataclass(frozen=True)
class Point:
    """One point of a scatter; ``tip`` shows when pointed at. ``chosen`` gets a ring and always its label."""

    x: float
    y: float
    label: str
    series: str = ""
    tip: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map: ``value`` decides the colour, ``text`` is printed. None: failed, or not measured."""

    value: float | None
    text: str
    chosen: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Bar:
    """One horizontal bar. ``style`` is bar, bar-quiet or bar-bad; ``low`` and ``high`` draw an interval."""

    label: str
    value: float
    text: str
    style: str = "bar"
    low: float | None = None
    high: float | None = None
    tip: str = ""


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[int],
    label: str,
    marked: Mapping[str, float],
    *,
    noun: str = "calls",
) -> Chart:
    """Return counts between ``edges`` (one more than counts, ascending), with vertical lines at ``marked`` values.

    The axis is logarithmic where the bins grow. The edges must be above 0 then, and for a single bin.
    Raises ValueError when the numbers of edges and counts do not fit.
    """
    if len(edges) != len(counts) + 1 or not counts:
        raise ValueError(f"{len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}")
    grows = edges[0] > 0.0 and edges[-1] - edges[-2] > 1.5 * (edges[1] - edges[0])
    # Bins of equal ratios are of equal width on a logarithmic axis alone.
    x = logarithmic(label, edges[0], edges[-1]) if grows or len(counts) == 1 else linear(label, edges, zero=False)
    y = linear(noun, [float(count) for count in counts])
    plot = Plot(x, y, left=_gutter(y), height=270, top=44)
    floor = plot.at_y(y.low)
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        left, top = plot.at_x(low), plot.at_y(count)
        if count:
            tip = f"{low:,.3g} to {high:,.3g} {label}: {count:,} {noun}"
            width = max(0.8, rounded(plot.at_x(high) - left - 0.6))
            plot.marks.append(Rect(left, top, width, rounded(floor - top), "bar", tip=tip))
    row_ends = [-1e9, -1e9]
    for name, value in sorted(marked.items(), key=lambda item: item[1]):
        at, half = plot.at_x(value), CHAR * len(name) / 2
        row = 0 if at - half > row_ends[0] else 1
        if at - half > row_ends[row]:
            plot.marks.append(Text(at, 38 - 13 * row, name, "mark-text", "middle"))
            row_ends[row] = at + half + 9
        plot.marks.append(Line(at, 41 - 13 * row, at, floor, "mark"))
    most = max(range(len(counts)), key=lambda number: counts[number])
    named = ", ".join(f"{name} {value:,.3g}" for name, value in marked.items())
    summary = (
        f"{sum(counts):,} {noun}; most of them from {edges[most]:,.3g} to {edges[most + 1]:,.3g} {label}; {named}."
    )
    return plot.chart(title, summary)


def percentile_curve(
    title: str, percentiles: Sequence[tuple[float, float]], label: str, *, noun: str = "calls"
) -> Chart:
    """Return values over percentiles ``(p, value)``, p from 0 to 100, on an axis that stretches the tail."""
    rows = sorted(percentiles)
    last = max((p for p, _ in rows if p < 100.0), default=99.0)
    y = linear(label, [value for _, value in rows], room=0.06)
    plot = Plot(PercentAxis(f"percentile of the {noun}, the tail stretched", max(last, 90.0)), y, _gutter(y), 270)
    points = tuple((plot.at_x(p), plot.at_y(value)) for p, value in rows)
    plot.marks.append(Path(points, "curve s1"))
    named = [(p, value) for p, value in rows if p in {50.0, 90.0, 99.0, 99.9, 99.99, 100.0}]
    for p, value in named:
        at = (plot.at_x(p), plot.at_y(value))
        plot.marks.append(Dot(*at, 3.4, "dot s1", f"{'max' if p == 100.0 else f'p{p:g}'}: {value:,.3f} {label}"))
        anchor = "end" if p >= last else "middle"
        plot.marks.append(Text(at[0], rounded(at[1] - 8), f"{value:,.3g}", "value", anchor))
    words = ", ".join(f"{'max' if p == 100.0 else f'p{p:g}'} {value:,.3g}" for p, value in named)
    return plot.chart(title, f"{label}: {words}.")


def scatter(
    title: str,
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    *,
    joined: bool = False,
    front: Sequence[Point] = (),
    level: float | None = None,
    height: float = 320.0,
) -> Chart:
    """Return points with their labels where there is room; ``joined`` connects the points of each series by x.

    ``front`` is a dashed line through points, for a Pareto front; ``level`` a horizontal line at a value of y. A legend
    names the series where there are several.
    """
    names = list(dict.fromkeys(point.series for point in points))
    legend = len(names) > 1
    plot = Plot(x, y, left=_gutter(y), height=height + (22 if legend else 0), bottom=64 if legend else 42)
    if legend:
        plot.marks += _legend(names, plot.left, plot.height - 27)
    if level is not None:
        plot.marks.append(Line(plot.left, plot.at_y(level), plot.width - plot.right, plot.at_y(level), "mark"))
    if front:
        line = tuple((plot.at_x(point.x), plot.at_y(point.y)) for point in sorted(front, key=lambda one: one.x))
        plot.marks.append(Path(line, "front"))
    if joined:
        for number, name in enumerate(names):
            mine = sorted((point for point in points if point.series == name), key=lambda one: one.x)
            line = tuple((plot.at_x(point.x), plot.at_y(point.y)) for point in mine)
            plot.marks.append(Path(line, f"curve {_series(number)}"))
    labels = Labels(plot.width, plot.height - plot.bottom, above=joined)
    for point in points:
        labels.block(plot.at_x(point.x), plot.at_y(point.y))
    for point in sorted(points, key=lambda one: (not one.chosen, -one.y)):
        at = (plot.at_x(point.x), plot.at_y(point.y))
        style = f"dot {_series(names.index(point.series))}"
        plot.marks.append(Dot(*at, 4.2, style, point.tip or f"{point.label}: {point.x:,.4g}, {point.y:,.4g}"))
        if point.chosen:
            plot.marks.append(Dot(*at, 7.5, "ring"))
        if point.label and (placed := labels.place(*at, point.label, force=point.chosen)):
            plot.marks.append(Text(*placed[:2], point.label, "strong" if point.chosen else "", placed[2]))
    best = max(points, key=lambda point: point.y)
    summary = f"{len(points)} points; highest {y.label} {best.y:,.4g} at {x.label} {best.x:,.4g} ({best.label})"
    summary += "".join(f"; chosen: {point.label} at {point.x:,.4g}, {point.y:,.4g}" for point in points if point.chosen)
    return plot.chart(title, summary + ".")


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], Cell],
    row_label: str,
    column_label: str,
) -> Chart:
    """Return a table of values coloured from the least to the greatest; ``cells`` by (row, column) index."""
    values = [cell.value for cell in cells.values() if cell.value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    left = max(CHAR * max(len(row) for row in rows) + 12, CHAR * len(row_label) + 12)
    width, step_y, top = WIDTH, 30.0, 40.0
    step = min(96.0, (width - left) / len(columns))
    marks: list[Mark] = [Text(left + step * len(columns) / 2, 11, column_label, "axis", "middle")]
    marks.append(Text(left - 8, 30, row_label, "axis", "end"))
    for number, name in enumerate(columns):
        marks.append(Text(rounded(left + step * (number + 0.5)), 30, name, anchor="middle"))
    for row, name in enumerate(rows):
        y = top + row * step_y
        marks.append(Text(left - 8, y + 19, name, "name", "end"))
        for column in range(len(columns)):
            marks += _cell(cells.get((row, column)), rounded(left + column * step), y, step - 2, step_y - 2, low, high)
    chosen = [f"{rows[row]}, {columns[column]}" for (row, column), cell in cells.items() if cell.chosen]
    summary = f"{len(values)} of {len(rows) * len(columns)} settings measured"
    if values:
        summary += f", from {low:,.4g} to {high:,.4g}"
    summary += f"; chosen: {chosen[0]}." if chosen else "."
    return Chart(title, summary, width, top + len(rows) * step_y + 4, tuple(marks))


def bars(title: str, rows: Sequence[Bar], label: str, *, bound: float | None = None, zero: bool = True) -> Chart:
    """Return horizontal bars from 0 with their values; ``bound`` is a vertical line that they are judged by.

    Without ``zero`` the values are dots on an axis of their own range, with whiskers for their intervals.
    """
    values = [number for row in rows for number in (row.value, row.low, row.high) if number is not None]
    values += [] if bound is None else [bound]
    x = linear(label, values, zero=zero)
    widest = CHAR * max(len(row.text) for row in rows) + 14
    left = min(230.0, CHAR * max(len(row.label) for row in rows) + 14)
    step = 21.0 if len(rows) <= 12 else 16.0
    height = 12 + len(rows) * step + 42
    plot = Plot(x, Axis("", 0.0, 1.0, ()), left=left, height=height, right=widest, top=8)
    for number, row in enumerate(rows):
        middle = rounded(12 + (number + 0.5) * step)
        start, end = plot.at_x(max(0.0, x.low) if zero else x.low), plot.at_x(row.value)
        thick = rounded(step * 0.62)
        if zero:
            box = (min(start, end), rounded(middle - thick / 2), max(0.8, rounded(abs(end - start))), thick)
            plot.marks.append(Rect(*box, row.style, tip=row.tip or f"{row.label}: {row.text}"))
        if row.low is not None and row.high is not None:
            low, high = plot.at_x(row.low), plot.at_x(row.high)
            plot.marks.append(Line(low, middle, high, middle, "whisker"))
            plot.marks += [Line(at, middle - 4, at, middle + 4, "whisker") for at in (low, high)]
            end = max(end, high)
        if not zero:
            plot.marks.append(Dot(plot.at_x(row.value), middle, 4.6, f"dot {row.style}", row.tip))
        name = _shortened(row.label, left - 14)
        plot.marks.append(Text(left - 8, middle + 4, name, "name", "end"))
        plot.marks.append(Text(end + 7, middle + 4, row.text, "value"))
    if bound is not None:
        plot.marks.append(Line(plot.at_x(bound), 6, plot.at_x(bound), height - 42, "mark"))
    summary = "; ".join(f"{row.label} {row.text}" for row in rows[:12])
    more = f"; and {len(rows) - 12} more" if len(rows) > 12 else ""
    return plot.chart(title, f"{label}: {summary}{more}.")


def _legend(names: Sequence[str], left: float, y: float) -> list[Mark]:
    marks: list[Mark] = []
    x = left
    for number, name in enumerate(names):
        marks.append(Dot(rounded(x + 5), y - 4, 4.2, f"dot {_series(number)}"))
        marks.append(Text(rounded(x + 14), y, name))
        x += 14 + CHAR * len(name) + 16
    return marks


def _cell(cell: Cell | None, x: float, y: float, width: float, height: float, low: float, high: float) -> list[Mark]:
    middle = (rounded(x + width / 2), y + 18)
    width = rounded(width)
    if cell is None or cell.value is None:
        text = cell.text if cell else "\N{MIDDLE DOT}"
        return [Rect(x, y, width, height, "empty", tip=cell.tip if cell else ""), Text(*middle, text, "", "middle")]
    level = (cell.value - low) / (high - low) if high > low else 1.0
    marks: list[Mark] = [Rect(x, y, width, height, "heat", rounded(0.06 + 0.94 * level, 3), cell.tip)]
    style = "on-heat" if level > 0.62 else "strong"
    marks.append(Text(*middle, cell.text, style, "middle"))
    if cell.chosen:
        marks.append(Rect(x, y, width, height, "chosen"))
    return marks


def _gutter(axis: Axis) -> float:
    return 14 + CHAR * max(len(text) for _, text in axis.ticks)


def _series(number: int) -> str:
    return f"s{number % SERIES + 1}"


def _shortened(text: str, room: float) -> str:
    keep = max(4, int(room / CHAR))
    return text if len(text) <= keep else "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - keep + 1 :]

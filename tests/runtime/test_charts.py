"""Where charts place their marks, in their own coordinates."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from cpupack.runtime.pages import charts
from cpupack.runtime.pages.axes import PercentAxis, linear, logarithmic, spread
from cpupack.runtime.pages.charts import Bar, Cell, Point
from cpupack.runtime.pages.shapes import Chart, Dot, Line, Path, Rect, Text


def of_type(chart: Chart, kind: type, style: str = "") -> list:
    return [mark for mark in chart.marks if isinstance(mark, kind) and style in [*mark.style.split(" "), ""]]


def inside(chart: Chart) -> None:
    """Assert that nothing is drawn outside the view box."""
    for mark in chart.marks:
        match mark:
            case Rect(x=x, y=y, width=width, height=height):
                points = [(x, y), (x + width, y + height)]
            case Line(x1=x1, y1=y1, x2=x2, y2=y2):
                points = [(x1, y1), (x2, y2)]
            case Path(points=several):
                points = list(several)
            case Dot(x=x, y=y) | Text(x=x, y=y):
                points = [(x, y)]
        for x, y in points:
            assert -0.5 <= x <= chart.width + 0.5, mark
            assert -0.5 <= y <= chart.height + 0.5, mark


# --- axes


@pytest.mark.parametrize("seed", range(200))
def test_a_linear_axis_holds_its_values_and_its_ticks_are_round(seed: int) -> None:
    generator = random.Random(seed)
    scale = 10.0 ** generator.randint(-4, 6)
    values = [generator.uniform(-1, 1) * scale for _ in range(generator.randint(1, 9))]
    axis = linear("x", values, zero=generator.random() < 0.5, room=generator.choice([0.0, 0.1]))
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert 2 <= len(axis.ticks) <= 12
    step = axis.ticks[1][0] - axis.ticks[0][0]
    power = 10.0 ** math.floor(math.log10(step) + 1e-9)
    assert round(step / power, 6) in {1, 2, 5}
    texts = [text for _, text in axis.ticks]
    assert len(set(texts)) == len(texts), "two ticks read alike"
    for value, text in axis.ticks:
        assert float(text.replace(",", "")) == pytest.approx(value, abs=step * 1e-6)
        assert axis.place(value) == pytest.approx((value - axis.low) / (axis.high - axis.low))


def test_a_linear_axis_of_nothing_but_zeros_has_a_length() -> None:
    axis = linear("x", [0.0, 0.0])
    assert axis.low == 0.0 < axis.high


def test_wide_ranges_are_logarithmic() -> None:
    assert not spread("ms", [1.0, 15.0]).log
    assert not spread("ms", [0.0, 1000.0]).log, "zero has no logarithm"
    axis = spread("ms", [1.0, 1000.0])
    assert axis.log
    places = [axis.place(value) for value in (1.0, 10.0, 100.0, 1000.0)]
    steps = [b - a for a, b in itertools.pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 3), "equal ratios take equal room"
    assert "logarithmic" in axis.label


@pytest.mark.parametrize("ends", [(10.0, 12.0), (1.0, 4.0), (0.2, 300.0), (5.0, 5.0)])
def test_a_logarithmic_axis_has_ticks_in_every_range(ends: tuple[float, float]) -> None:
    axis = logarithmic("ms", *ends)
    assert len(axis.ticks) >= 2
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)


def test_each_further_nine_takes_the_same_room() -> None:
    axis = PercentAxis("percentile", 99.99)
    places = [axis.place(p) for p in (0.0, 90.0, 99.0, 99.9, 99.99)]
    steps = [b - a for a, b in itertools.pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 4)
    assert axis.place(100.0) == 1.0 > places[-1]


# --- charts


def test_a_histogram_is_as_high_as_its_counts() -> None:
    chart = charts.histogram("h", [0.0, 1.0, 2.0, 3.0, 4.0], [10, 40, 0, 20], "ms", {"p50": 1.5})
    bars = of_type(chart, Rect, "bar")
    assert [round(bar.height / bars[0].height) for bar in bars] == [1, 4, 2], "an empty bin has no bar"
    assert bars[0].width == pytest.approx(bars[1].width, abs=0.2)
    assert len({bar.y + bar.height for bar in bars}) == 1, "all stand on the axis"
    (mark,) = of_type(chart, Line, "mark")
    assert bars[1].x < mark.x1 < bars[1].x + bars[1].width + 1
    assert "70 calls" in chart.summary
    assert "40 calls" in bars[1].tip
    inside(chart)


def test_bins_of_equal_ratios_are_equally_wide() -> None:
    edges = [2.0**power for power in range(6)]
    bars = of_type(charts.histogram("h", edges, [1, 2, 3, 2, 1], "ms", {}, noun="requests"), Rect, "bar")
    assert max(bar.width for bar in bars) - min(bar.width for bar in bars) <= 0.2


def test_a_histogram_of_one_bin_is_drawn() -> None:
    inside(charts.histogram("h", [5.0, 5.005], [7], "ms", {"p50": 5.0, "p90": 5.0, "p99": 5.0}))


def test_counts_without_their_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="3 edges, not 2"):
        charts.histogram("h", [0.0, 1.0], [1, 2], "ms", {})


def test_marked_values_close_together_keep_their_names_apart() -> None:
    edges = [float(edge) for edge in range(101)]
    chart = charts.histogram("h", edges, [1] * 100, "ms", {"p50": 50.0, "p90": 50.5, "p99": 51.0})
    names = of_type(chart, Text, "mark-text")
    boxes = [(name.x - 10, name.x + 10, name.y) for name in names]
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] != other[2] or one[1] <= other[0] or other[1] <= one[0]
    assert len(of_type(chart, Line, "mark")) == 3, "a line without room for its name is still drawn"


def test_a_percentile_curve_never_falls() -> None:
    points = [(0.0, 1.0), (50.0, 2.0), (90.0, 3.0), (99.0, 9.0), (99.9, 20.0), (100.0, 50.0)]
    chart = charts.percentile_curve("c", points, "ms")
    (curve,) = of_type(chart, Path, "curve")
    assert len(curve.points) == len(points)
    for (x1, y1), (x2, y2) in itertools.pairwise(curve.points):
        assert x2 > x1
        assert y2 <= y1, "up is less y"
    assert "p99 9" in chart.summary
    assert "max 50" in chart.summary
    inside(chart)


def test_a_scatter_puts_points_in_proportion_and_labels_apart() -> None:
    generator = random.Random(3)
    points = [Point(generator.random(), generator.random(), f"b{number}", str(number % 3)) for number in range(40)]
    points.append(Point(0.5, 0.5, "the chosen one", "0", chosen=True))
    x, y = linear("x", [0.0, 1.0]), linear("y", [0.0, 1.0])
    chart = charts.scatter("s", points, x, y, joined=True, level=0.25)
    dots = {dot.tip: dot for dot in of_type(chart, Dot, "dot") if dot.tip}
    assert len(dots) == len(points)
    left, right = min(points, key=lambda point: point.x), max(points, key=lambda point: point.x)
    middle = points[-1]
    at = [dots[f"{point.label}: {point.x:,.4g}, {point.y:,.4g}"].x for point in (left, middle, right)]
    expected = (middle.x - left.x) / (right.x - left.x)
    assert (at[1] - at[0]) / (at[2] - at[0]) == pytest.approx(expected, abs=0.01)
    assert len(of_type(chart, Dot, "ring")) == 1
    named = {point.label for point in points}
    boxes = []
    for text in of_type(chart, Text):
        if text.text in named:
            wide = 6.3 * len(text.text)
            start = {"start": text.x, "middle": text.x - wide / 2, "end": text.x - wide}[text.anchor]
            boxes.append((start, text.y - 10, start + wide, text.y + 2))
    assert len(boxes) > 10
    for one, other in itertools.combinations(boxes, 2):
        assert not (one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])
    assert any(text.text == "the chosen one" for text in of_type(chart, Text, "strong"))
    assert len(of_type(chart, Path, "curve")) == 3
    assert len(of_type(chart, Line, "mark")) == 1
    inside(chart)


def test_a_heat_map_colours_by_value_and_marks_the_chosen_cell() -> None:
    cells = {
        (0, 0): Cell(100.0, "100"),
        (0, 1): Cell(300.0, "300", chosen=True),
        (1, 0): Cell(200.0, "200"),
        (1, 1): Cell(None, "failed", tip="out of memory"),
    }
    chart = charts.heat_map("h", ["1 x 1", "1 x 2", "2 x 1"], ["1", "8"], cells, "instances x threads", "batch size")
    heat = {rect.opacity for rect in of_type(chart, Rect, "heat")}
    assert heat == {0.06, 0.53, 1.0}
    (chosen,) = of_type(chart, Rect, "chosen")
    strongest = max(of_type(chart, Rect, "heat"), key=lambda rect: rect.opacity)
    assert (chosen.x, chosen.y) == (strongest.x, strongest.y)
    empty = of_type(chart, Rect, "empty")
    assert len(empty) == 3, "one failed, two never measured"
    assert {rect.tip for rect in empty} == {"out of memory", ""}
    assert "3 of 6 settings measured, from 100 to 300; chosen: 1 x 1, 8" in chart.summary
    inside(chart)


def test_one_measured_cell_is_no_division_by_zero() -> None:
    inside(charts.heat_map("h", ["a"], ["1"], {(0, 0): Cell(5.0, "5")}, "row", "column"))


def test_bars_are_as_long_as_their_values() -> None:
    rows = [Bar("a", 10.0, "10"), Bar("b", 40.0, "40"), Bar("a" * 80, 20.0, "20")]
    chart = charts.bars("b", rows, "dB", bound=30.0)
    drawn = of_type(chart, Rect, "bar")
    assert drawn[1].width / drawn[0].width == pytest.approx(4.0, rel=0.02)
    (bound,) = of_type(chart, Line, "mark")
    assert drawn[0].x + drawn[2].width < bound.x1 < drawn[0].x + drawn[1].width
    assert any(text.text.startswith("\N{HORIZONTAL ELLIPSIS}a") for text in of_type(chart, Text, "name"))
    inside(chart)


def test_bars_below_zero_start_at_zero() -> None:
    rows = [Bar("a", -10.0, "-10"), Bar("b", 20.0, "20")]
    drawn = of_type(charts.bars("b", rows, "dB"), Rect, "bar")
    assert drawn[0].x + drawn[0].width == pytest.approx(drawn[1].x, abs=0.2)


def test_intervals_are_whiskers_around_dots_where_the_axis_has_no_zero() -> None:
    rows = [Bar("FP32", 82.4, "82.40 %", "bar-quiet", 80.7, 84.0), Bar("INT8", 82.3, "82.30 %", "bar", 80.6, 83.9)]
    chart = charts.bars("accuracy", rows, "%", zero=False)
    assert not of_type(chart, Rect, "bar")
    dots = of_type(chart, Dot, "dot")
    whiskers = [line for line in of_type(chart, Line, "whisker") if line.y1 == line.y2]
    for dot, whisker in zip(dots, whiskers, strict=True):
        assert whisker.x1 < dot.x < whisker.x2
    inside(chart)

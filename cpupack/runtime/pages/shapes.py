"""The shapes that charts are made of, the plot between two axes, and labels that avoid each other.

Coordinates are in the units of the chart's view box, one to a CSS pixel at full width. ``style`` names classes of
``templates/style.css.j2``, which has the colours for light and dark; ``templates/charts.html.j2`` draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from .axes import Axis, PercentAxis

WIDTH = 560.0
CHAR = 6.3
"""Width of a character at the charts' text size, estimated because there is no browser to measure it."""


@dataclass(frozen=True)
class Rect:
    kind: ClassVar[str] = "rect"
    x: float
    y: float
    width: float
    height: float
    style: str
    opacity: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class Line:
    kind: ClassVar[str] = "line"
    x1: float
    y1: float
    x2: float
    y2: float
    style: str


@dataclass(frozen=True)
class Path:
    kind: ClassVar[str] = "path"
    points: tuple[tuple[float, float], ...]
    style: str


@dataclass(frozen=True)
class Dot:
    kind: ClassVar[str] = "dot"
    x: float
    y: float
    radius: float
    style: str
    tip: str = ""


@dataclass(frozen=True)
class Text:
    """``anchor`` as in SVG: start, middle, end. ``turned`` reads upwards."""

    kind: ClassVar[str] = "text"
    x: float
    y: float
    text: str
    style: str = ""
    anchor: str = "start"
    turned: bool = False


Mark = Rect | Line | Path | Dot | Text


@dataclass(frozen=True)
class Chart:
    """A drawing with the heading ``title`` and a ``summary`` in words for those who do not see it."""

    title: str
    summary: str
    width: float
    height: float
    marks: tuple[Mark, ...]


@dataclass
class Plot:
    """The area between two axes, collecting marks."""

    x: Axis | PercentAxis
    y: Axis
    left: float
    height: float
    right: float = 14.0
    top: float = 22.0
    bottom: float = 42.0
    width: float = WIDTH
    marks: list[Mark] = field(default_factory=list)

    def __post_init__(self) -> None:
        floor, wall = self.height - self.bottom, self.width - self.right
        for value, text in self.y.ticks:
            y = self.at_y(value)
            self.marks.append(Line(self.left, y, wall, y, "grid"))
            self.marks.append(Text(self.left - 7, rounded(y + 4), text, anchor="end"))
        taken = -1e9
        for value, text in self.x.ticks:
            x, half = self.at_x(value), CHAR * len(text) / 2
            self.marks.append(Line(x, floor, x, floor + 4, "axis-line"))
            if x - half > taken:
                self.marks.append(Text(x, floor + 17, text, anchor="middle"))
                taken = x + half + 5
        self.marks.append(Line(self.left, floor, wall, floor, "axis-line"))
        self.marks.append(Text(self.left - 7, 11, self.y.label, "axis"))
        self.marks.append(Text((self.left + wall) / 2, self.height - 5, self.x.label, "axis", "middle"))

    def at_x(self, value: float) -> float:
        return rounded(self.left + self.x.place(value) * (self.width - self.right - self.left))

    def at_y(self, value: float) -> float:
        floor = self.height - self.bottom
        return rounded(floor - self.y.place(value) * (floor - self.top))

    def chart(self, title: str, summary: str) -> Chart:
        return Chart(title, summary, self.width, self.height, tuple(self.marks))


class Labels:
    """Puts labels next to their points, and leaves out a label that would cover another one or a point.

    ``above`` tries the places above and below first, for points that a line joins.
    """

    def __init__(self, width: float, floor: float, *, above: bool) -> None:
        self._width, self._floor, self._above = width, floor, above
        self._taken: list[tuple[float, float, float, float]] = []

    def block(self, x: float, y: float) -> None:
        self._taken.append((x - 4, y - 4, x + 4, y + 4))

    def place(self, x: float, y: float, text: str, *, force: bool) -> tuple[float, float, str] | None:
        """Return x, y and anchor of the text, None where there is no room. ``force`` then places it all the same."""
        wide = CHAR * len(text)
        choices = [
            (x + 9, y + 4, "start", x + 8),
            (x - 9, y + 4, "end", x - 8 - wide),
            (x, y - 10, "middle", x - wide / 2),
            (x, y + 18, "middle", x - wide / 2),
        ]
        for at_x, at_y, anchor, left in choices[2:] + choices[:2] if self._above else choices:
            box = (left, at_y - 10, left + wide, at_y + 2)
            inside = left >= 0 and left + wide <= self._width and at_y - 10 >= 12 and at_y <= self._floor
            if inside and not any(_overlap(box, other) for other in self._taken):
                self._taken.append(box)
                return rounded(at_x), rounded(at_y), anchor
        if not force:
            return None
        right = x + 9 + wide <= self._width
        return (rounded(x + 9), rounded(y + 4), "start") if right else (rounded(x - 9), rounded(y + 4), "end")


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def rounded(value: float, digits: int = 1) -> float:
    """Return a coordinate as it is written: a tenth of a pixel is enough."""
    return round(value, digits)

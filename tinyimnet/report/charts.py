"""The numbers of a line chart: which points are drawn, where, and what its axes say. templates/chart.html.j2 draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tinyimnet.report.axes import Scale, Tick, placed, ticks

POINTS = 700  # of a curve at most: the least and the greatest value in each of 350 columns of about one pixel
DOTTED = 40  # up to so many points each has a dot
LABEL_GAP = 14  # least distance of two numbers of attempts
COLOURS, DASHES = 8, 3  # in style.css

Point = tuple[str, str]


@dataclass(frozen=True)
class Curve:
    """Values over the global step; `low` and `high` are the edges of a band around them, empty for none."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Mark:
    """A moment that is shown in each chart as a vertical line: the start of an attempt."""

    step: float
    label: str  # above the line
    text: str  # under the pointer
    look: str = ""  # of the line of its run; empty: of none


@dataclass(frozen=True)
class Frame:
    """The drawing and the plot in it, in user units; a browser scales them to the column, 330 to 640 px."""

    width: int = 400
    height: int = 244
    left: int = 48
    right: int = 390
    top: int = 18
    bottom: int = 206


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn.

    Attributes:
        label: its name.
        look: classes in style.css.
        place: in the legend, from 0.
        steps: of the points.
        values: of the points.
        points: of the line; in a stacked chart it lies on those before it.
        band: the outline of the band around it.
        dotted: each point has a dot.
    """

    label: str
    look: str
    place: int
    steps: Sequence[float]
    values: Sequence[float]
    points: list[Point]
    band: list[Point]
    dotted: bool


@dataclass(frozen=True)
class PlacedMark:
    """A mark as it is drawn; without its label where that would lie on another one."""

    x: str
    label: str
    text: str
    look: str


@dataclass(frozen=True)
class Chart:
    """A chart as it is drawn.

    Attributes:
        title: with the unit.
        lines: in the order of the legend.
        stacked: each line is the upper edge of an area.
        x_ticks: numbers at the axis of steps.
        y_ticks: numbers at the axis of values.
        marks: moments.
        newest: the last step with a value.
        last: step at the right edge.
        epoch: steps in one; 0: not known, or not the same for all lines.
        dropped: values that are not finite.
        thinned_to: most points of a line; 0: all are there.
    """

    title: str
    lines: list[Line]
    stacked: bool
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[PlacedMark]
    newest: float
    last: float
    epoch: float
    dropped: int
    thinned_to: int
    frame: ClassVar[Frame] = Frame()


def chart(
    title: str,
    curves: Sequence[Curve],
    marks: Sequence[Mark] = (),
    *,
    zero: bool = True,
    stacked: bool = False,
    last: float = 0,
    epoch: float = 0,
) -> Chart | None:
    """The chart of some curves; None where no curve has a finite value.

    Args:
        title: with the unit.
        curves: what to draw.
        marks: moments.
        zero: the axis begins at 0.
        stacked: the curves are parts of a sum and lie on each other, as long as they have the same steps.
        last: step at the right edge, the same in all charts of a page; 0: the last one of the curves.
        epoch: steps in one; 0: not known, or not the same for all curves.
    """
    finite = [_finite(curve) for curve in curves]
    shown = [curve for curve in finite if curve.steps]
    if not shown:
        return None
    stacked = stacked and all(curve.steps == shown[0].steps for curve in shown)
    kept = _thinned(shown, stacked)
    tops = _stack(kept) if stacked else [curve.values for curve in kept]
    newest = max(curve.steps[-1] for curve in shown)
    last, frame = last or newest or 1, Chart.frame
    y_ticks = ticks(*_range(kept, tops, zero))
    x = Scale(0, last, frame.left, frame.right)
    y = Scale(y_ticks[0], y_ticks[-1], frame.bottom, frame.top)
    return Chart(
        title=title,
        lines=[_line(i, curve, top, x, y, stacked) for i, (curve, top) in enumerate(zip(kept, tops, strict=True))],
        stacked=stacked,
        x_ticks=placed([tick for tick in ticks(0, last) if tick <= last], x),
        y_ticks=placed(y_ticks, y),
        marks=_placed_marks([mark for mark in marks if mark.step <= last], x),
        newest=newest,
        last=last,
        epoch=epoch,
        dropped=sum(len(a.steps) - len(b.steps) for a, b in zip(curves, finite, strict=True)),
        thinned_to=POINTS if max(len(curve.steps) for curve in shown) > POINTS else 0,
    )


def look(colour: int) -> str:
    """The classes of a line in style.css: a colour, and dashes where the colours have run out."""
    return f"c{colour % COLOURS} d{colour // COLOURS % DASHES}"


def thin(values: Sequence[float], most: int = POINTS) -> list[int]:
    """Places of at most `most` values, in order: the first, the last, and the least and greatest of each stretch."""
    n = len(values)
    if n <= most:
        return list(range(n))
    stretches = most // 2 - 1
    kept = {0, n - 1}
    for i in range(stretches):
        stretch = range(i * n // stretches, (i + 1) * n // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)


def _finite(curve: Curve) -> Curve:
    places = [i for i, value in enumerate(curve.values) if math.isfinite(value)]
    return curve if len(places) == len(curve.values) else _at_places(curve, places)


def _thinned(curves: list[Curve], stacked: bool) -> list[Curve]:
    """Parts of a sum keep the same places, those of the sum."""
    if not stacked:
        return [_at_places(curve, thin(curve.values)) for curve in curves]
    places = thin([sum(values) for values in zip(*(curve.values for curve in curves), strict=True)])
    return [_at_places(curve, places) for curve in curves]


def _at_places(curve: Curve, places: list[int]) -> Curve:
    steps, values, low, high = (
        [row[i] for i in places] if row else [] for row in (curve.steps, curve.values, curve.low, curve.high)
    )
    return Curve(curve.label, steps, values, curve.colour, low, high)


def _stack(curves: list[Curve]) -> list[Sequence[float]]:
    """The upper edge of each curve that lies on those before it."""
    tops: list[Sequence[float]] = []
    for curve in curves:
        below = tops[-1] if tops else [0.0] * len(curve.values)
        tops.append([a + b for a, b in zip(below, curve.values, strict=True)])
    return tops


def _range(curves: list[Curve], tops: list[Sequence[float]], zero: bool) -> tuple[float, float]:
    """The least and the greatest value that is drawn."""
    heights = [value for top in tops for value in top]
    heights += [value for curve in curves for value in (*curve.low, *curve.high)]
    if zero:
        heights.append(0)
    return min(heights), max(heights)


def _line(place: int, curve: Curve, top: Sequence[float], x: Scale, y: Scale, stacked: bool) -> Line:
    across = [x(step) for step in curve.steps]
    upper, lower = ([*zip(across, map(y, edge), strict=True)] if edge else [] for edge in (curve.high, curve.low))
    return Line(
        label=curve.label,
        look=look(curve.colour),
        place=place,
        steps=curve.steps,
        values=curve.values,
        points=[*zip(across, map(y, top), strict=True)],
        band=upper + lower[::-1],
        dotted=len(across) <= DOTTED and not stacked,
    )


def _placed_marks(marks: Sequence[Mark], x: Scale) -> list[PlacedMark]:
    found, free = [], -math.inf
    for mark in marks:
        place = x(mark.step)
        label = mark.label if float(place) >= free else ""
        if label:
            free = float(place) + LABEL_GAP
        found.append(PlacedMark(place, label, mark.text, mark.look))
    return found

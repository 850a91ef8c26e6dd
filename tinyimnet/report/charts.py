"""Layout of line charts: points, axes and marks, for templates/chart.html.j2 to draw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tinyimnet.report.axes import Scale, Tick, placed, ticks

POINTS = 700  # maximum per curve: minimum and maximum of each of 350 columns, which are about one pixel wide
DOTTED = 40  # curves with at most this many points have a dot at each point
LABEL_GAP = 14  # minimum distance between two attempt numbers, in user units
COLOURS, DASHES = 8, 3  # in style.css

Point = tuple[str, str]


@dataclass(frozen=True)
class Curve:
    """Values over the global step.

    Attributes:
        label: name in the legend.
        steps: steps of the points.
        values: values of the points.
        colour: number for `look`.
        low: lower edge of a band around the values; empty for no band.
        high: upper edge of that band.
        clock: index of its clock on the page.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    clock: int = 0


@dataclass(frozen=True)
class Mark:
    """The start of an attempt, shown in every chart as a vertical line."""

    step: float
    label: str  # above the line
    text: str  # tooltip
    look: str = ""  # CSS classes of its run; empty on the page of a single run
    clock: int = 0  # index of the clock of its run


@dataclass(frozen=True)
class Frame:
    """Size of the SVG and its plot area in user units; a browser scales the SVG to its column, 330 to 640 px."""

    width: int = 400
    height: int = 249
    left: int = 48
    right: int = 390
    top: int = 18
    bottom: int = 206


@dataclass(frozen=True)
class Line:
    """A curve as drawn.

    Attributes:
        label: name in the legend.
        look: CSS classes in style.css.
        place: index in the legend, from 0.
        steps: steps of the points.
        values: values of the points.
        points: coordinates of the points; in a stacked chart, on top of the lines before it.
        band: outline of the band around the line.
        dotted: whether each point has a dot.
        clock: index of its clock on the page.
    """

    label: str
    look: str
    place: int
    steps: Sequence[float]
    values: Sequence[float]
    points: list[Point]
    band: list[Point]
    dotted: bool
    clock: int


@dataclass(frozen=True)
class PlacedMark:
    """A mark as drawn; its label is empty if it would overlap another one."""

    x: str
    label: str
    mark: Mark


@dataclass(frozen=True)
class Chart:
    """A chart as drawn.

    Attributes:
        title: title with the unit.
        lines: lines in legend order.
        stacked: whether each line is the upper edge of an area.
        x_ticks: ticks of the step axis.
        y_ticks: ticks of the value axis.
        marks: starts of attempts.
        newest: last step with a value.
        last: step at the right edge.
        epoch: steps per epoch; 0 if unknown or different between the lines.
        dropped: number of non-finite values that are not drawn.
        thinned_to: maximum points per line; 0 if no line is thinned.
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
    """Lay out a chart; None if no curve has a finite value.

    Args:
        title: title with the unit.
        curves: curves to draw.
        marks: starts of attempts.
        zero: start the value axis at 0.
        stacked: stack the curves, which add up to a total, if they have the same steps.
        last: step at the right edge, the same in all charts of a page; 0: the last step of the curves.
        epoch: steps per epoch; 0 if unknown or different between the curves.
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
    """CSS classes of a line in style.css: a colour, and dashes once the colours run out."""
    return f"c{colour % COLOURS} d{colour // COLOURS % DASHES}"


def thin(values: Sequence[float], most: int = POINTS) -> list[int]:
    """Indices of at most `most` values, in order: the first, the last, and the minimum and maximum of each interval."""
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
    """Thin each curve; stacked curves all keep the points that thinning their sum keeps."""
    if not stacked:
        return [_at_places(curve, thin(curve.values)) for curve in curves]
    places = thin([sum(values) for values in zip(*(curve.values for curve in curves), strict=True)])
    return [_at_places(curve, places) for curve in curves]


def _at_places(curve: Curve, places: list[int]) -> Curve:
    steps, values, low, high = (
        [row[i] for i in places] if row else [] for row in (curve.steps, curve.values, curve.low, curve.high)
    )
    return replace(curve, steps=steps, values=values, low=low, high=high)


def _stack(curves: list[Curve]) -> list[Sequence[float]]:
    """Upper edge of each curve when it is stacked on the ones before it."""
    tops: list[Sequence[float]] = []
    for curve in curves:
        below = tops[-1] if tops else [0.0] * len(curve.values)
        tops.append([a + b for a, b in zip(below, curve.values, strict=True)])
    return tops


def _range(curves: list[Curve], tops: list[Sequence[float]], zero: bool) -> tuple[float, float]:
    """Minimum and maximum of the values that are drawn."""
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
        clock=curve.clock,
    )


def _placed_marks(marks: Sequence[Mark], x: Scale) -> list[PlacedMark]:
    found, free = [], -math.inf
    for mark in marks:
        place = x(mark.step)
        label = mark.label if float(place) >= free else ""
        if label:
            free = float(place) + LABEL_GAP
        found.append(PlacedMark(place, label, mark))
    return found

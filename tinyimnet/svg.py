"""Line charts as inline SVG under an HTML legend: sharp at every size, and nothing has to be loaded to see them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tinyimnet.markup import Html, escaped, number

WIDTH, HEIGHT = 400, 244  # user units; a browser scales them to the column, 330 to 640 px
LEFT, RIGHT, TOP, BOTTOM = 48, 390, 18, 206  # edges of the plot
POINTS = 700  # of a curve at most: the least and the greatest value in each of 350 columns of about one pixel
DOTTED = 40  # up to so many points each has a dot
LABEL_GAP = 14  # user units between two numbers of lives
LINES = 30  # so many marks are lines through the plot; more would hide it, and are short
COLOURS = 8  # in markup.STYLE; later curves are dashed


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
    """A moment that is shown in each chart as a vertical line: the start of a life."""

    step: float
    label: str  # above the line
    text: str  # under the pointer
    colour: str = ""  # class of the line: of its run; empty: of none


@dataclass(frozen=True)
class Scale:
    """Where a value lies on the page: `low` at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> str:
        place = self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
        return f"{place:.1f}".removesuffix(".0")


def figure(
    title: str,
    curves: Sequence[Curve],
    marks: Sequence[Mark] = (),
    *,
    zero: bool = True,
    stacked: bool = False,
    last: float = 0,
    epoch: float = 0,
) -> str:
    """A chart with its title and legend; empty where no curve has a finite value.

    Args:
        title: with the unit.
        curves: what to draw.
        marks: moments.
        zero: the axis begins at 0.
        stacked: the curves are parts of a sum, with the same steps, and lie on each other.
        last: step at the right edge, the same in all charts of a page; 0: the last one of the curves.
        epoch: steps in one; 0: not known, or not the same for all curves.
    """
    finite = [_finite(curve) for curve in curves]
    dropped = sum(len(a.steps) - len(b.steps) for a, b in zip(curves, finite, strict=True))
    shown = [curve for curve in finite if curve.steps]
    if not shown:
        return ""
    kept = _thinned(shown, stacked)
    newest = max(curve.steps[-1] for curve in shown)
    plot = _plot(title, kept, marks, last or newest, zero, stacked, epoch)
    note = f'<li class="note">{dropped} values that are not finite are left out</li>' if dropped else ""
    legend = "".join(
        f'<li><i class="{line_class(curve.colour)}"></i>{escaped(curve.label)} <b>{number(curve.values[-1])}</b></li>'
        for curve in kept
    )
    return (
        f'<figure class="chart"><figcaption><h3>{escaped(title)}</h3><span class="at">{_at(newest, epoch)}</span>'
        f'</figcaption><ul class="legend">{legend}{note}</ul>{plot}</figure>'
    )


def sheet(figures: Iterable[str], lines: int, told: str) -> str:
    """Charts side by side, below a word on how to read them.

    Args:
        figures: of `figure`.
        lines: of the longest metrics.jsonl.
        told: what a vertical line means; empty where there is none.
    """
    words = ["Values are the last ones; point at a chart, or drag over it, for those of another step.", told]
    if lines > POINTS:
        words.append(f"Curves are thinned to {POINTS} points: the least and greatest of each stretch stay.")
    return f'<p class="soft">{" ".join(filter(None, words))}</p><div class="charts">{"".join(figures)}</div>'


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


def ticks(low: float, high: float) -> list[float]:
    """About 6 round numbers, from the last one that is not above `low` to the first not below `high`."""
    if high <= low:
        return [low, low + (abs(low) or 1)]
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A number in at most five letters: 0.05, 250, 2.5k, 3M, 5e-4."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e3:
        return f"{value / 1e3:g}k"
    if size >= 1e-3 or not value:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def line_class(colour: int) -> str:
    """The classes of a line in markup.STYLE: a colour, and dashes where the colours have run out."""
    return f"c{colour % COLOURS} d{colour // COLOURS % 3}"


# ---- pieces -------------------------------------------------------------------------------------------------


def _finite(curve: Curve) -> Curve:
    places = [i for i, value in enumerate(curve.values) if math.isfinite(value)]
    return curve if len(places) == len(curve.values) else _at_places(curve, places)


def _at_places(curve: Curve, places: list[int]) -> Curve:
    steps, values, low, high = (
        [row[i] for i in places] if row else () for row in (curve.steps, curve.values, curve.low, curve.high)
    )
    return Curve(curve.label, steps, values, curve.colour, low, high)


def _thinned(curves: list[Curve], stacked: bool) -> list[Curve]:
    """Parts of a sum keep the same places, those of the sum."""
    if not stacked:
        return [_at_places(curve, thin(curve.values)) for curve in curves]
    places = thin([sum(values) for values in zip(*(curve.values for curve in curves), strict=True)])
    return [_at_places(curve, places) for curve in curves]


def _plot(
    title: str,
    curves: list[Curve],
    marks: Sequence[Mark],
    last: float,
    zero: bool,
    stacked: bool,
    epoch: float,
) -> str:
    tops = _stack(curves) if stacked else [list(curve.values) for curve in curves]
    heights = [value for top in tops for value in top]
    heights += [value for curve in curves for value in (*curve.low, *curve.high)]
    y_ticks = ticks(min(heights + [0] * zero), max(heights + [0] * zero))
    last = last or 1
    x, y = Scale(0, last, LEFT, RIGHT), Scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP)
    pieces = [_axes([tick for tick in ticks(0, last) if tick <= last], y_ticks, x, y)]
    drawn = [
        _draw(i, curve, top, x, y, stacked) for i, (curve, top) in enumerate(zip(curves, tops, strict=True))
    ]
    pieces += reversed(drawn) if stacked else drawn  # the lower parts cover the upper ones
    pieces.append(_marks([mark for mark in marks if mark.step <= last], x))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(title)}" data-left="{LEFT}" '
        f'data-right="{RIGHT}" data-last="{last:g}" data-epoch="{epoch:g}">{"".join(pieces)}'
        f'<path class="cursor" d="M0 {TOP}V{BOTTOM}"/></svg>'
    )


def _stack(curves: list[Curve]) -> list[list[float]]:
    tops: list[list[float]] = []
    for curve in curves:
        below = tops[-1] if tops else [0.0] * len(curve.values)
        tops.append([a + b for a, b in zip(below, curve.values, strict=True)])
    return tops


def _axes(x_ticks: list[float], y_ticks: list[float], x: Scale, y: Scale) -> str:
    grid = "".join(f"M{LEFT} {y(tick)}H{RIGHT}" for tick in y_ticks)
    left = "".join(
        f'<text x="{LEFT - 6}" y="{y(tick)}" dy=".35em">{tick_label(tick)}</text>' for tick in y_ticks
    )
    below = "".join(f'<text x="{x(tick)}" y="{BOTTOM + 16}">{tick_label(tick)}</text>' for tick in x_ticks)
    feet = "".join(f"M{x(tick)} {BOTTOM}v4" for tick in x_ticks)
    name = f'<text x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 5}">step</text>'
    return (
        f'<path class="grid" d="{grid}"/><path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}{feet}"/>'
        f'<g class="left">{left}</g><g class="below">{below}{name}</g>'
    )


def _draw(i: int, curve: Curve, top: list[float], x: Scale, y: Scale, stacked: bool) -> str:
    places = [x(step) for step in curve.steps]
    points = " ".join(f"{a},{y(value)}" for a, value in zip(places, top, strict=True))
    kind, area = line_class(curve.colour), ""
    if stacked:
        area = f'<polygon class="part {kind}" points="{places[0]},{BOTTOM} {points} {places[-1]},{BOTTOM}"/>'
    elif curve.low:
        edge = [*zip(places, curve.high, strict=True), *reversed([*zip(places, curve.low, strict=True)])]
        area = f'<polygon class="band {kind}" points="{" ".join(f"{a},{y(value)}" for a, value in edge)}"/>'
    dots = "".join(f"M{a} {y(value)}h0" for a, value in zip(places, top, strict=True))
    dots = f'<path class="dots {kind}" d="{dots}"/>' if len(places) <= DOTTED and not stacked else ""
    steps = " ".join(f"{step:g}" if step < 1e6 else f"{step:.0f}" for step in curve.steps)
    values = " ".join(number(value) for value in curve.values)
    data = f'data-curve="{i}" data-steps="{steps}" data-values="{values}"'
    return f'{area}<polyline class="{kind}" points="{points}" {data}/>{dots}'


def _marks(marks: Sequence[Mark], x: Scale) -> str:
    pieces, free = [], -math.inf
    end = TOP if len(marks) <= LINES else BOTTOM - 10
    for mark in marks:
        place = x(mark.step)
        label = ""
        if mark.label and float(place) >= free:
            label = f'<text x="{place}" y="{TOP - 5}">{escaped(mark.label)}</text>'
            free = float(place) + LABEL_GAP
        line = f'<path class="life {mark.colour}" d="M{place} {end}V{BOTTOM}"/>'
        pieces.append(f"<g><title>{escaped(mark.text)}</title>{line}{label}</g>")
    return "".join(pieces)


def _at(step: float, epoch: float) -> Html:
    return Html(f"step {step:,.0f}" + (f", epoch {step / epoch:.4g}" if epoch else ""))

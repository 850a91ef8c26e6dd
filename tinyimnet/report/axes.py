"""Chart axes: round tick values and coordinates."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Linear map from values to coordinates: `low` is drawn at `start` and `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> str:
        place = self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
        return f"{place:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    place: str
    label: str


def placed(values: list[float], scale: Scale) -> list[Tick]:
    """Ticks of an axis at the given values."""
    return [Tick(scale(value), tick_label(value)) for value in values]


def ticks(low: float, high: float) -> list[float]:
    """About 6 round numbers, from the largest that is at most `low` to the smallest that is at least `high`."""
    if high <= low:
        return [low, low + (abs(low) or 1)]
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def tick_label(value: float) -> str:
    """Format a number in at most five characters: 0.05, 250, 2.5k, 3M, 5e-4."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e3:
        return f"{value / 1e3:g}k"
    if size >= 1e-3 or not value:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"

"""How metrics are drawn; their names and units are in run/metrics.py."""

from tinyimnet.run.metrics import Metric

EMA, RAW, TRAINING, OTHERS = 0, 1, 2, 3  # colour numbers in style.css; OTHERS is the first of the remaining ones
STACKED = "Step time breakdown"
MARKS = "perf/attempt"  # not drawn as a chart, because every chart marks the attempts


def colour(metric: Metric, place: int) -> int:
    """Colour number: fixed for EMA weights, raw weights and training, by index in the chart for other metrics."""
    for prefix, number in (("val/ema_", EMA), ("val/", RAW), ("train/", TRAINING)):
        if metric.key.startswith(prefix):
            return number
    return OTHERS + place


def from_zero(metric: Metric) -> bool:
    """Whether the value axis starts at 0; for a loss that would waste the space below the curve."""
    return "loss" not in metric.key


def is_stacked(metric: Metric) -> bool:
    """Whether the metrics of its chart add up to a total."""
    return metric.chart == STACKED

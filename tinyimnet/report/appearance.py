"""How a metric is drawn; what it is called and its unit are in run/metrics.py."""

from tinyimnet.run.metrics import Metric

EMA, RAW, TRAINING, OTHERS = 0, 1, 2, 3  # colours in style.css; OTHERS is the first of the rest
STACKED = "Parts of a step"
MARKS = "perf/attempt"  # has no chart: the marks in all of them show it


def colour(metric: Metric, place: int) -> int:
    """EMA weights, raw weights and the training have theirs in every chart; others go by their place in the chart."""
    for prefix, number in (("val/ema_", EMA), ("val/", RAW), ("train/", TRAINING)):
        if metric.key.startswith(prefix):
            return number
    return OTHERS + place


def from_zero(metric: Metric) -> bool:
    """Whether the axis begins at 0; that of a loss would be empty below the curve."""
    return "loss" not in metric.key


def is_stacked(metric: Metric) -> bool:
    """Whether the metrics of its chart are parts of a sum."""
    return metric.chart == STACKED

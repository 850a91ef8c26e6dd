"""Metrics of a run: their keys in metrics.jsonl and on W&B, and their names in charts and tables."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP = "trainer/global_step"
TOP1 = "val/ema_top1"  # selects the best checkpoint


@dataclass(frozen=True)
class Metric:
    """A number that is logged over the global step.

    Attributes:
        key: name in metrics.jsonl and on W&B.
        name: title where the metric has a chart of its own.
        unit: empty for none.
        group: dashboard section of its chart.
        chart: title of the chart that it shares with metrics of the same quantity and unit.
        label: legend entry in that chart.
    """

    key: str
    name: str
    unit: str
    group: str
    chart: str
    label: str

    @property
    def title(self) -> str:
        """Name with unit, such as EMA top-1, validation [%]."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


METRICS = (
    Metric("val/ema_top1", "EMA top-1, validation", "%", "Accuracy", "Top-1, validation", "EMA weights"),
    Metric("val/top1", "Raw top-1, validation", "%", "Accuracy", "Top-1, validation", "raw weights"),
    Metric("val/ema_top5", "EMA top-5, validation", "%", "Accuracy", "Top-5, validation", "EMA weights"),
    Metric("val/top5", "Raw top-5, validation", "%", "Accuracy", "Top-5, validation", "raw weights"),
    Metric("train/loss", "Training loss", "", "Loss", "Loss", "training"),
    Metric("val/loss", "Raw loss, validation", "", "Loss", "Loss", "validation (raw)"),
    Metric("val/ema_loss", "EMA loss, validation", "", "Loss", "Loss", "validation (EMA)"),
    Metric("train/lr", "Learning rate", "", "Schedule", "Learning rate", "learning rate"),
    Metric("train/resolution", "Resolution", "px", "Schedule", "Resolution", "training"),
    Metric("train/grad_norm", "Gradient norm", "", "Health", "Gradient norm", "gradient norm"),
    Metric("train/ema_distance", "EMA distance", "", "Health", "EMA distance", "raw vs. EMA weights"),
    Metric("perf/images_per_s", "Throughput", "images/s", "Throughput", "Throughput", "images/s"),
    Metric("perf/mfu", "Model FLOPs utilisation", "%", "Throughput", "Model FLOPs utilisation", "MFU"),
    Metric("perf/step_ms", "Step time", "ms", "Throughput", "Step time", "step"),
    Metric("perf/forward_backward_ms", "Forward + backward time", "ms", "Throughput", "Step time breakdown",
           "forward + backward"),
    Metric("perf/data_ms", "Data time", "ms", "Throughput", "Step time breakdown", "data"),
    Metric("perf/optimizer_ms", "Optimizer time", "ms", "Throughput", "Step time breakdown", "optimizer"),
    Metric("perf/wait_ms", "Wait time", "ms", "Throughput", "Step time breakdown", "wait"),
    Metric("perf/save_s", "Time blocked by saving", "s", "Health", "Saving and evaluation", "blocked by saving"),
    Metric("perf/eval_s", "Evaluation time", "s", "Health", "Saving and evaluation", "evaluation"),
    Metric("train/skipped_steps", "Total skipped steps", "", "Health", "Skipped steps, failed saves", "skipped steps"),
    Metric("perf/failed_saves", "Total failed saves", "", "Health", "Skipped steps, failed saves", "failed saves"),
    Metric("perf/gpu_memory_gb", "Peak GPU memory", "GB", "Health", "GPU memory", "peak"),
    Metric("perf/attempt", "Attempt", "", "Health", "Attempt", "attempt"),
)  # fmt: skip

# Results by which finished runs are compared; val/ema_top1_flip is in DONE only.
RESULTS = {
    "val/ema_top1": "EMA top-1 [%]",
    "val/ema_top1_flip": "EMA top-1, flip TTA [%]",
    "val/ema_top5": "EMA top-5 [%]",
    "val/top1": "raw top-1 [%]",
    "val/ema_loss": "EMA loss",
}


def by_chart() -> dict[str, list[Metric]]:
    """Metrics by chart title with unit, in the order of METRICS."""
    charts: dict[str, list[Metric]] = {}
    for metric in METRICS:
        title = f"{metric.chart} [{metric.unit}]" if metric.unit else metric.chart
        charts.setdefault(title, []).append(metric)
    return charts


_read: dict[Path, tuple[tuple[int, int, int], list[dict[str, Any]]]] = {}  # version of each file, and its rows


def evaluations(file: Path) -> list[dict[str, Any]]:
    """Step and TOP1 of each evaluation, and the newest row, of metrics.jsonl; an unchanged file is not read again.

    Parsing all rows of 200 long runs takes ten seconds, and `tinyimnet status --watch` looks every five.

    Raises:
        OSError: the file exists and cannot be read.
    """
    try:
        with file.open("rb") as rows:  # NFS reports the current size and time only of an opened file
            stat = os.fstat(rows.fileno())
            version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if _read.get(file, ((), []))[0] != version:
                _read[file] = version, _evaluations(rows.read().splitlines())
    except FileNotFoundError:
        return []
    return _read[file][1]


def _evaluations(lines: list[bytes]) -> list[dict[str, Any]]:
    key, last = f'"{TOP1}"'.encode(), len(lines) - 1
    while last >= 0 and not isinstance(_row(lines[last]).get(STEP), int):  # cut off by a crash
        last -= 1
    rows = [_row(line) for line in lines[: max(0, last)] if key in line]
    return [{STEP: row.get(STEP), TOP1: row.get(TOP1)} for row in rows] + [_row(line) for line in lines[last:][:1]]


def _row(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; {} if a crash cut it off."""
    with suppress(ValueError):
        row = json.loads(line)
        return row if isinstance(row, dict) else {}
    return {}

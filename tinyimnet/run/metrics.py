"""The metrics of a run: their keys in metrics.jsonl and on W&B, and how every chart and table names them."""

from dataclasses import dataclass

STEP = "trainer/global_step"
TOP1 = "val/ema_top1"  # what decides which checkpoint is the best one


@dataclass(frozen=True)
class Metric:
    """A number that is logged over the global step.

    Attributes:
        key: its name in metrics.jsonl and on W&B.
        name: what it is, where it stands alone.
        unit: empty for none.
        group: the section that its chart is in.
        chart: the chart that it is drawn in, with others of the same quantity and unit.
        label: its name in that chart.
    """

    key: str
    name: str
    unit: str
    group: str
    chart: str
    label: str

    @property
    def title(self) -> str:
        """Name and unit: EMA top-1, validation [%]."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


METRICS = (
    Metric("val/ema_top1", "EMA top-1, validation", "%", "Accuracy", "Top-1, validation", "EMA weights"),
    Metric("val/top1", "Raw top-1, validation", "%", "Accuracy", "Top-1, validation", "raw weights"),
    Metric("val/ema_top5", "EMA top-5, validation", "%", "Accuracy", "Top-5, validation", "EMA weights"),
    Metric("val/top5", "Raw top-5, validation", "%", "Accuracy", "Top-5, validation", "raw weights"),
    Metric("train/loss", "Training loss", "", "Loss", "Loss", "training"),
    Metric("val/loss", "Raw loss, validation", "", "Loss", "Loss", "validation, raw"),
    Metric("val/ema_loss", "EMA loss, validation", "", "Loss", "Loss", "validation, EMA"),
    Metric("train/lr", "Learning rate", "", "Schedule", "Learning rate", "learning rate"),
    Metric("train/resolution", "Resolution", "px", "Schedule", "Resolution", "training"),
    Metric("train/grad_norm", "Gradient norm", "", "Health", "Gradient norm", "gradient norm"),
    Metric("train/ema_distance", "Raw to EMA distance", "", "Health", "Raw to EMA distance", "EMA distance"),
    Metric("perf/images_per_s", "Throughput", "images/s", "Throughput", "Throughput", "images/s"),
    Metric("perf/step_ms", "Time of a step", "ms", "Throughput", "Time of a step", "step"),
    Metric("perf/forward_backward_ms", "Forward and backward", "ms", "Throughput", "Parts of a step", "forward, backward"),
    Metric("perf/data_ms", "Data", "ms", "Throughput", "Parts of a step", "data"),
    Metric("perf/optimizer_ms", "Optimizer", "ms", "Throughput", "Parts of a step", "optimizer"),
    Metric("perf/wait_ms", "Waiting", "ms", "Throughput", "Parts of a step", "waiting"),
    Metric("perf/save_s", "Waiting for a save", "s", "Health", "Saves and evaluations", "held up by saves"),
    Metric("perf/eval_s", "Evaluation", "s", "Health", "Saves and evaluations", "evaluation"),
    Metric("train/skipped_steps", "Skipped steps, so far", "", "Health", "Skipped steps, failed saves", "skipped steps"),
    Metric("perf/failed_saves", "Failed saves, so far", "", "Health", "Skipped steps, failed saves", "failed saves"),
    Metric("perf/gpu_memory_gb", "GPU memory, peak", "GB", "Health", "GPU memory", "peak"),
    Metric("perf/attempt", "Attempt", "", "Health", "Attempt", "attempt"),
)  # fmt: skip

# What a finished run is compared by; the second is in DONE alone.
RESULTS = {
    "val/ema_top1": "EMA top-1 [%]",
    "val/ema_top1_flip": "EMA top-1, flip [%]",
    "val/ema_top5": "EMA top-5 [%]",
    "val/top1": "raw top-1 [%]",
    "val/ema_loss": "EMA loss",
}


def by_chart() -> dict[str, list[Metric]]:
    """The metrics of each chart, by the title of the chart with its unit, in the order of METRICS."""
    charts: dict[str, list[Metric]] = {}
    for metric in METRICS:
        title = f"{metric.chart} [{metric.unit}]" if metric.unit else metric.chart
        charts.setdefault(title, []).append(metric)
    return charts

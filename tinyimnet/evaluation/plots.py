"""Figures of training curves, confusion matrix and calibration; drawn without pyplot, so no display is needed."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tinyimnet.files import write_atomically
from tinyimnet.run.metrics import STEP, by_chart

CURVES = ("Loss", "Top-1, validation [%]", "Learning rate")


def curves(lines: list[dict[str, float]], path: Path) -> None:
    """Plot loss, top-1 (raw and EMA) and learning rate over epochs, from the lines of a run's metrics.jsonl."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    charts = by_chart()
    for panel, title in zip(figure.subplots(1, 3), CURVES, strict=True):
        for metric in charts[title]:
            points = [(line["epoch"], line[metric.key]) for line in lines if metric.key in line]
            few = "." if len(points) < 30 else ""
            panel.plot([x for x, _ in points], [y for _, y in points], label=metric.label, marker=few)
        panel.set(title=title, xlabel="epoch")
        panel.grid(alpha=0.3)
        panel.legend()
    last = max((line[STEP] for line in lines), default=0)
    name = os.fsencode(path.parent.name).decode("utf-8", "replace")  # readable in any locale
    figure.suptitle(f"{name}, {last:.0f} steps")
    _save(figure, path, dpi=120)


def confusion(matrix: np.ndarray, path: Path) -> None:
    """Write a PNG of a (K, K) count matrix (rows are true classes, columns predictions), as shares of each row."""
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    figure = Figure(figsize=(9, 8), layout="constrained")
    panel = figure.subplots()
    # The square root makes errors visible: off the diagonal, an entry is a few percent of its row.
    picture = panel.imshow(np.sqrt(shares), cmap="magma", vmin=0, vmax=1)
    ticks = np.linspace(0, 1, 6)
    figure.colorbar(picture, ticks=ticks, label="share of the true class [%]").ax.set_yticklabels(
        [f"{100 * tick**2:.0f}" for tick in ticks]
    )
    panel.set(title="Confusion matrix", xlabel="predicted class", ylabel="true class")
    _save(figure, path, dpi=110)


def reliability(bins: np.ndarray, path: Path) -> None:
    """Write a PNG of `analysis.calibration` (B, 5): accuracy and share of images over confidence."""
    low, high, images, _, accuracy = bins[bins[:, 2] > 0].T
    width = high - low
    figure = Figure(figsize=(5.5, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(low, accuracy, width, align="edge", edgecolor="white", label="accuracy")
    above.plot([0, 100], [0, 100], "--", color="gray", label="perfect calibration")
    above.set(title="Reliability of the top-1 prediction", ylabel="accuracy [%]", xlim=(0, 100), ylim=(0, 100))
    above.legend(loc="upper left")
    below.bar(low, 100 * images / images.sum(), width, align="edge", edgecolor="white", color="gray")
    below.set(xlabel="confidence [%]", ylabel="share of images [%]")
    for panel in (above, below):
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
    _save(figure, path, dpi=110)


def _save(figure: Figure, path: Path, dpi: int) -> None:
    content = BytesIO()
    figure.savefig(content, dpi=dpi)
    write_atomically(path, content.getvalue())

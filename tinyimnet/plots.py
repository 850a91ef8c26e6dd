"""Pictures for people: curves of a run, a grid of images, a confusion matrix. Figures without pyplot: no display."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tinyimnet.tracking import STEP


def curves(lines: list[dict[str, float]], path: Path) -> None:
    """Loss, top-1 (raw and EMA) and learning rate of a run over the epochs, from its metrics.jsonl."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    series = [
        (panels[0], {"train/loss": "train", "val/loss": "val", "val/ema_loss": "val, EMA"}, "loss"),
        (panels[1], {"val/top1": "raw", "val/ema_top1": "EMA"}, "validation top-1 [%]"),
        (panels[2], {"train/lr": "learning rate"}, "learning rate"),
    ]
    for panel, keys, title in series:
        for key, label in keys.items():
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            few = "." if len(points) < 30 else ""
            panel.plot([x for x, _ in points], [y for _, y in points], label=label, marker=few)
        panel.set(title=title, xlabel="epoch")
        panel.grid(alpha=0.3)
        panel.legend()
    last = max((line[STEP] for line in lines), default=0)
    figure.suptitle(f"{path.parent.name}, {last:.0f} steps")
    figure.savefig(path, dpi=120)


def image_grid(images: np.ndarray, titles: list[str], path: Path, columns: int = 8) -> None:
    """Write a PNG of (N, S, S, 3) images in [0, 255] or [0, 1] with a title above each."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    for panel in (panels := figure.subplots(rows, columns, squeeze=False)).flat:
        panel.axis("off")
    for panel, image, title in zip(panels.flat, images, titles, strict=False):
        panel.imshow(image)
        panel.set_title(title, fontsize=7)
    figure.savefig(path, dpi=110)


def confusion(matrix: np.ndarray, path: Path) -> None:
    """Write a PNG of a (K, K) count matrix: rows are true classes, columns predictions; shares of each row."""
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    figure = Figure(figsize=(9, 8), layout="constrained")
    panel = figure.subplots()
    # The square root shows the off-diagonal, where a mistake is a few percent of a row.
    picture = panel.imshow(np.sqrt(shares), cmap="magma", vmin=0, vmax=1)
    ticks = np.linspace(0, 1, 6)
    figure.colorbar(picture, ticks=ticks, label="share of the true class [%]").ax.set_yticklabels(
        [f"{100 * tick**2:.0f}" for tick in ticks]
    )
    panel.set(title="confusion matrix", xlabel="predicted class", ylabel="true class")
    figure.savefig(path, dpi=110)

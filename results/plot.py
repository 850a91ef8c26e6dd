#!/usr/bin/env python3
"""Plot the top-1 of the runs in results/ over their minutes of training, for docs/performance.md.

python results/plot.py docs/accuracy.png
"""

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tinyimnet import errors
from tinyimnet.files import write_atomically

PUBLISHED = ((56.51, "ResNet-56, 0.9 million parameters", "--"), (53.34, "999,838 parameters", ":"))


def main(argv: list[str]) -> int:
    """Write the picture."""
    if len(argv) != 1:
        raise errors.UserError("give exactly one file to write: python results/plot.py docs/accuracy.png")
    files = sorted(Path(__file__).parent.glob("*.json"))
    runs = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    figure = Figure(figsize=(9, 5), layout="constrained")
    panel = figure.subplots()
    for name, run in runs.items():
        x, y = curve(name, runs)
        panel.plot(x, y, marker=".", label=f"{name}: {y[-1]:.2f} %, {run['cpu'].split(',')[0]}")
    for top1, network, style in PUBLISHED:
        panel.axhline(top1, color="gray", linestyle=style, label=f"published: {top1} %, {network}")
    panel.set(xlabel="minutes of training", ylabel="top-1 of the EMA weights, validation [%]", xlim=(0, None))
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")
    content = BytesIO()
    figure.savefig(content, dpi=100)
    write_atomically(Path(argv[0]), content.getvalue())
    return 0


def curve(name: str, runs: dict[str, dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Minutes and top-1 in percent of a run's evaluations.

    A run that fine-tunes the weights of another one starts at the end of that run.
    """
    x, y = [], []
    if before := runs[name]["init_from"]:
        of_before = curve(before, runs)
        x, y = of_before[0][-1:], of_before[1][-1:]
    start = x[0] if x else 0.0
    evaluations = runs[name]["evaluations"]
    return x + [start + e["minutes"] for e in evaluations], y + [e["ema_top1"] for e in evaluations]


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))

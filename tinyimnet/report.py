"""How a run ended: the marker for the job script, and a table for the person."""

import json
from pathlib import Path

from tinyimnet import console, plots, runfolder, tracking
from tinyimnet.export import FINAL


def stopped(run_dir: Path, reason: str, step: int) -> None:
    """A run that was asked to stop and saved."""
    runfolder.mark(run_dir, "REQUEUE")
    console.console.print(f"stopped by {reason}: saved at step {step}; the same command goes on from there")


def finished(run_dir: Path, results: dict[str, float | int]) -> None:
    """A run that reached its last step: curves, DONE, table."""
    lines = tracking.read_metrics(run_dir / "metrics.jsonl")
    plots.curves(lines, run_dir / "curves.png")
    runfolder.mark(run_dir, "DONE", json.dumps({**lines[-1], **results}, indent=1))
    show(run_dir)


def show(run_dir: Path) -> None:
    """Print what a finished run reached and where everything lies."""
    results = json.loads((run_dir / "DONE").read_text())
    place = run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else run_dir
    rows = [
        ("parameters", f"{results['parameters']:,}"),
        ("trained", f"{results['epochs']} epochs, {results['steps']:,} steps"),
        (
            "val top-1 / top-5, EMA weights",
            f"{results['val/ema_top1']:.2f} % / {results['val/ema_top5']:.2f} %",
        ),
        ("val top-1, EMA, mirror image averaged", f"{results['val/ema_top1_flip']:.2f} %"),
        ("val top-1 / top-5, raw weights", f"{results['val/top1']:.2f} % / {results['val/top5']:.2f} %"),
        ("best val top-1 of an epoch, EMA", f"{results['best_ema_top1']:.2f} %"),
        ("weights", str(place / FINAL)),
        ("metrics and curves", f"{place / 'metrics.jsonl'}, {place / 'curves.png'}"),
        ("look closer", f"python -m tinyimnet evaluate {place}"),
    ]
    console.table(f"{place} is finished", rows)

"""A run, or several side by side, as one HTML page: python -m tinyimnet report RUN [RUN ...] [--out FILE]

It shows what the W&B dashboard shows, from the run folder alone. It needs no server and no network: open it in a browser,
send it, or attach it. One that is made while the run goes on shows the run as far as it is.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyimnet import comparison, markup, svg
from tinyimnet.config import flatten
from tinyimnet.errors import UserError
from tinyimnet.files import write_atomically
from tinyimnet.record import Record, clock, moment, read_object, read_record, read_table
from tinyimnet.tracking import STEP

EXTREMES = 10  # classes in view at each end of the table
PAIRS = 10  # confused pairs in view
LIVES = 12  # lives in view


@dataclass(frozen=True)
class Panel:
    """A chart of one run: metrics, each with a label and a colour; raw, EMA and training keep theirs."""

    title: str
    curves: Mapping[str, tuple[str, int]]
    zero: bool = True
    stacked: bool = False


EMA, RAW, TRAIN = 0, 1, 2  # colours
PANELS = (
    Panel("Top-1, validation [%]", {"val/ema_top1": ("EMA weights", EMA), "val/top1": ("raw weights", RAW)}),
    Panel("Top-5, validation [%]", {"val/ema_top5": ("EMA weights", EMA), "val/top5": ("raw weights", RAW)}),
    Panel(
        "Loss",
        {
            "train/loss": ("training", TRAIN),
            "val/loss": ("validation, raw", RAW),
            "val/ema_loss": ("validation, EMA", EMA),
        },
        zero=False,
    ),
    Panel("Learning rate", {"train/lr": ("learning rate", TRAIN)}),
    Panel("Resolution [px]", {"train/size": ("training", TRAIN)}),
    Panel("Gradient norm", {"train/grad_norm": ("gradient norm", TRAIN)}),
    Panel("Raw to EMA distance", {"train/ema_distance": ("EMA distance", EMA)}),
    Panel("Throughput [images/s]", {"perf/images_per_s": ("images/s", TRAIN)}),
    Panel(
        "Time of a step [ms]",
        {
            "perf/forward_backward_ms": ("forward, backward", TRAIN),
            "perf/data_ms": ("data", 4),
            "perf/optimizer_ms": ("optimizer", 3),
            "perf/wait_ms": ("waiting", 6),
        },
        stacked=True,
    ),
    Panel(
        "Saves and evaluations [s]",
        {"perf/save_s": ("held up by saves", 3), "perf/eval_s": ("evaluation", 5)},
    ),
    Panel(
        "Skipped steps, failed saves",
        {"train/bad_steps": ("skipped steps", 6), "perf/failed_saves": ("failed saves", 3)},
    ),
    Panel("GPU memory [GB]", {"perf/gpu_memory_gb": ("peak", 5)}),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; several are compared")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="page (default: RUN/report.html; of several runs: report.html)",
    )


def main(args: argparse.Namespace) -> int:
    """Write the page and print where it is.

    Raises:
        UserError: a RUN is no run folder, has no metrics yet or is damaged, or the page cannot be written.
    """
    paths = list(dict.fromkeys(Path(os.path.abspath(path)) for path in args.runs))
    records = [read_record(path) for path in paths]
    page = one_run(records[0]) if len(records) == 1 else comparison.page(records)
    out = args.out or (args.runs[0] if len(records) == 1 else Path()) / "report.html"
    try:
        write_atomically(out, page.encode())
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); choose another file.") from None
    print(f"{out}: {len(page) / 1e6:.1f} MB; open it in a browser.")
    return 0


def one_run(run: Record) -> str:
    """The page of a single run."""
    sections = {
        "Curves": charts(run),
        "Evaluation": evaluation(run.path / "evaluation"),
        "Pictures": pictures(run.path),
        "Configuration": details(run),
        "Lives": lives(run),
    }
    state, word = run.state()
    colour = {"finished": "good", "running": "good", "failed": "bad", "killed": "bad"}.get(state, "")
    head = (
        f'<h1>{markup.escaped(run.name)}</h1><p><b class="{colour}">{state}</b>, {markup.escaped(word)}'
        f'<br><span class="soft">page of {moment(time.time())}</span>{wandb_link(run.url)}</p>{key_figures(run)}'
    )
    return markup.document(run.name, head, sections)


def wandb_link(url: str) -> str:
    """A link to the W&B run, where there is one."""
    if not url.startswith(("https://", "http://")):
        return ""
    return f' &middot; <a href="{markup.escaped(url)}" rel="noreferrer">W&amp;B run</a>'


def key_figures(run: Record) -> str:
    """The tiles below the name."""
    settings, macs = run.settings, run.facts.get("macs")
    speeds, top1 = run.series("perf/images_per_s")[1], run.series("val/ema_top1")[1]
    limit = settings.get("model.max_parameters")
    written = max(
        file.stat().st_mtime for name in ("metrics.jsonl", "DONE") if (file := run.path / name).exists()
    )
    since = f"{clock(written - run.lives[0]['started'])} with pauses" if run.lives else ""
    found = [
        ("EMA top-1", percent(run.last("val/ema_top1")), f"best {max(top1):.2f} %" if top1 else ""),
        ("EMA top-1, flip", percent(run.results.get("val/ema_top1_flip")), "mirror image averaged"),
        ("raw top-1", percent(run.last("val/top1")), ""),
        ("parameters", f"{run.parameters:,}" if run.parameters else "", f"of {limit:,}" if limit else ""),
        ("MACs", f"{macs / 1e6:,.1f} M" if macs else "", "for one image"),
        ("epochs", f"{run.lines[-1].get('epoch', 0):.4g}", f"of {settings.get('train.epochs', '?')}"),
        ("images/s", f"{statistics.median(speeds):,.0f}" if speeds else "", "median"),
        ("lives", str(len(run.lives)) if run.lives else "", "starts of the run"),
        ("training time", clock(run.training_seconds), since),
    ]
    return markup.tiles(figure for figure in found if figure[1])


def percent(value: float | None) -> str:
    """34.20 %, or nothing."""
    return "" if value is None else f"{value:.2f} %"


def charts(run: Record) -> str:
    """Every metric over the global step."""
    begun = dict(enumerate(run.lives, 1))
    marks = [
        svg.Mark(step, str(life), f"life {life}, from step {step:,.0f}{_when(begun.get(life, {}))}")
        for step, life in run.starts()
    ]
    figures = (
        svg.figure(
            panel.title,
            [svg.Curve(label, *run.series(key), colour) for key, (label, colour) in panel.curves.items()],
            marks,
            zero=panel.zero,
            stacked=panel.stacked,
            last=run.lines[-1][STEP],
            epoch=run.steps_per_epoch,
        )
        for panel in PANELS
    )
    told = "A dashed vertical line is where a life of the run began, with its number." if marks else ""
    return svg.sheet(figures, len(run.lines), told)


def _when(life: Mapping[str, Any]) -> str:
    return f", {moment(life['started'])} on {', '.join(life['nodes'])}" if life else ""


# ---- evaluation ---------------------------------------------------------------------------------------------


def evaluation(folder: Path) -> str:
    """What `python -m tinyimnet evaluate` wrote: as a whole, by class, pairs of classes, by confidence."""
    by_class = read_table(folder / "per_class.csv", "name", "images", "correct", "top1_percent")
    pairs = read_table(
        folder / "most_confused.csv", "true_name", "predicted_name", "images", "percent_of_true"
    )
    bins = read_table(folder / "calibration.csv", "low", "high", "images", "confidence", "accuracy")
    below = confused(pairs) + calibration(bins)
    return (
        evaluated(read_object(folder / "results.json"))
        + classes(by_class)
        + (below and markup.columns(below))
    )


def evaluated(results: Mapping[str, Any]) -> str:
    """The figures for the whole split, in a row of tiles."""
    if not results:
        return ""
    what = f"{results['images']:,} {results['split']} images, tta {results['tta']}"
    weights = f"{Path(results['weights']).name}, step {results['step']:,}"
    found = [
        ("top-1", percent(results["top1"]), what),
        ("top-5", percent(results["top5"]), weights),
        ("loss", f"{results['loss']:.4f}", "cross-entropy"),
        ("calibration error", percent(results["ece"]), "ECE, 15 bins"),
    ]
    return markup.tiles(found)


def classes(rows: list[dict[str, str]]) -> str:
    """The classes with the lowest and the highest accuracy, and all of them."""
    ranked = sorted(rows, key=lambda row: float(row["top1_percent"]))

    def show(part: list[dict[str, str]]) -> str:
        cells = [
            (r["name"], r["top1_percent"], f"{r['correct']}/{r['images']}", r["most_often_taken_for"])
            for r in part
        ]
        return markup.table(("class", "top-1 [%]", "right", "most often taken for"), cells, "lrrl")

    if not rows:
        return ""
    ends = markup.card("Lowest accuracy", show(ranked[:EXTREMES])) + markup.card(
        "Highest accuracy", show(ranked[::-1][:EXTREMES])
    )
    return markup.columns(ends) + markup.folded(f"All {len(rows)} classes", show(ranked))


def confused(rows: list[dict[str, str]]) -> str:
    """The pairs of classes with the most mistakes."""

    def show(part: list[dict[str, str]]) -> str:
        cells = [(r["true_name"], r["predicted_name"], r["images"], r["percent_of_true"]) for r in part]
        return markup.table(("class", "taken for", "images", "of the class [%]"), cells, "llrr")

    if not rows:
        return ""
    rest = markup.folded(f"{len(rows) - PAIRS} more", show(rows[PAIRS:])) if len(rows) > PAIRS else ""
    return markup.card("Most confused pairs", show(rows[:PAIRS]) + rest)


def calibration(rows: list[dict[str, str]]) -> str:
    """How often the network is right, by how sure it is."""
    cells = [
        (f"{float(r['low']):.0f} to {float(r['high']):.0f}", r["images"], r["confidence"], r["accuracy"])
        for r in rows
        if int(r["images"])
    ]
    header = ("confidence [%]", "images", "mean confidence [%]", "accuracy [%]")
    return markup.card("Calibration", markup.table(header, cells, "lrrr")) if rows else ""


def pictures(path: Path) -> str:
    """The pictures of the folder that are there."""
    found = (
        markup.picture(path / "augmented.png", "Training images, as the network sees them", wide=True),
        markup.picture(path / "evaluation" / "most_confused.png", "Most confused classes", wide=True),
        markup.picture(path / "evaluation" / "confusion.png", "Confusion matrix"),
        markup.picture(path / "evaluation" / "reliability.png", "Reliability"),
    )
    return f'<div class="pictures">{"".join(found)}</div>' if any(found) else ""


# ---- what it was ----------------------------------------------------------------------------------------------


def details(run: Record) -> str:
    """Configuration and facts, folded."""
    parts = markup.folded("config.yaml", markup.table(("key", "value"), run.settings.items(), "ll"))
    if run.facts:
        facts = [(key, _plain(value)) for key, value in flatten(run.facts).items()]
        parts += markup.folded("facts.json, of the last start", markup.table(("fact", "value"), facts, "ll"))
    return parts


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value or "-")


def lives(run: Record) -> str:
    """When, where, in which job and from which step each life began."""
    rows = [
        (
            i,
            moment(life["started"]),
            f"{life['step']:,}",
            ", ".join(life["nodes"]),
            life["processes"],
            life["job"] or "-",
        )
        for i, life in enumerate(run.lives, 1)
    ]
    whole = markup.table(("life", "started", "from step", "nodes", "processes", "Slurm job"), rows, "rrrlrl")
    if len(rows) > LIVES:
        return markup.folded(f"All {len(rows)} lives", whole)
    return markup.card("Starts", whole) if rows else ""

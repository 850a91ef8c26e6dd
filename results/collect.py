#!/usr/bin/env python3
"""Save the figures and evaluations of a finished run as a small JSON file with a model card, and print its README row.

python results/collect.py runs/tiny1m_sprint          # writes results/tiny1m_sprint.json and tiny1m_sprint.md
python results/collect.py results/tiny1m_sprint.json  # writes the card again
"""

import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tinyimnet import errors
from tinyimnet.config import flatten
from tinyimnet.config_cli import load
from tinyimnet.data.dataset import IMAGE_SIZE
from tinyimnet.evaluation import model_card
from tinyimnet.evaluation.weights import FINAL
from tinyimnet.files import write_atomically
from tinyimnet.run.metrics import STEP, TOP1
from tinyimnet.run.record import Record, with_metrics

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
REFERENCE = 53.34  # top-1 in percent, published with 999,838 parameters
INFO = [
    "parameters",
    "macs",
    "train_images",
    "val_images",
    "world_size",
    "cpu",
    "gpus",
    "versions",
    "git_commit",
]
KEPT = ("val/top1", "val/ema_top1", "val/ema_top5", "val/ema_loss")


def main(argv: list[str]) -> int:
    """Write the JSON file and the card, and print the row for the README."""
    if len(argv) != 1:
        raise errors.UserError("give exactly one run folder: python results/collect.py runs/tiny1m_sprint")
    given, here = Path(argv[0]), Path(__file__).parent
    if given.suffix == ".json":
        kept = json.loads(given.read_text(encoding="utf-8"))
    else:
        run = with_metrics(given)
        if not run.results:
            raise errors.UserError(f"{run.path} is not finished; rerun its training command.")
        kept = collect(run)
        write_atomically(here / f"{run.name}.json", json.dumps(kept, indent=1) + "\n")
    write_atomically(here / f"{kept['run']}.md", card(kept))
    print(row(kept))
    return 0


def collect(run: Record) -> dict[str, Any]:
    """Figures of a finished run.

    The minutes count its steps, each at the median step time for its resolution over all log intervals, and its
    evaluations. Slowdowns by other programs on the machine are therefore excluded.
    """
    usual = step_seconds(run)
    seconds, before, evaluations = 0.0, 0.0, []
    for line in run.lines:
        seconds += usual[line["train/resolution"]] * (line[STEP] - before) + line.get("perf/eval_s", 0)
        before = line[STEP]
        if TOP1 in line:
            measured = {key.removeprefix("val/"): round(line[key], 4) for key in KEPT}
            at = {
                "epoch": round(line["epoch"], 2),
                "minutes": round(seconds / 60, 1),
                "resolution": line["train/resolution"],
            }
            evaluations.append({**at, "train_loss": round(line["train/loss"], 4), **measured})
    passed = [e["minutes"] for e in evaluations if e["ema_top1"] > REFERENCE]
    return {
        "run": run.name,
        "seed": run.config["run.seed"],
        "precision": run.config["train.precision"],
        "epochs": run.config["train.epochs"],
        "attempts": len(run.attempts),
        "init_from": starting_run(run.config["train.init_from"]),
        **{name: run.info[name] for name in INFO},
        "minutes": round(seconds / 60, 1),
        "minutes_as_recorded": round(run.training_seconds / 60, 1),
        f"minutes_to_{REFERENCE}": passed[0] if passed else None,
        "top1": run.results["val/top1"],
        "ema_top1": run.results["val/ema_top1"],
        "ema_top1_flip": run.results["val/ema_top1_flip"],
        "images_per_s": {
            resolution: round(run.config["train.global_batch_size"] / s) for resolution, s in usual.items()
        },
        "evaluations": evaluations,
    }


def starting_run(weights: str) -> str:
    """Name of the run that wrote `weights`: its folder, final.safetensors in it, or a file in results/."""
    path = Path(weights)
    return path.parent.name if path.name == FINAL else path.stem


def card(kept: dict[str, Any]) -> str:
    """The model card of weights in results/, as Markdown; MODEL_CARD.md of a run has the whole recipe."""
    name, last = kept["run"], kept["evaluations"][-1]
    sees = model_card.upsampling(IMAGE_SIZE, last["resolution"])
    recipe = flatten(asdict(load([f"--config={CONFIGS / name}.yaml"])))
    return f"""# {name}: a CNN with {kept["parameters"]:,} parameters for Tiny ImageNet

[{name}.safetensors]({name}.safetensors) classifies 64 x 64 images into the 200 classes of Tiny ImageNet. It has
{kept["parameters"]:,} parameters and needs {kept["macs"] / 1e6:.1f} million multiply-accumulates per image.
It was trained {model_card.origin(recipe)}.
{sees}
## Results

Measured on [{kept["val_images"]:,} validation images](val_images.txt) that were not used for training:

| weights | top-1 | top-5 |
|---|---|---|
| {name}.safetensors, EMA weights | {kept["ema_top1"]:.2f} % | {last["ema_top5"]:.2f} % |
| the same with flip averaging | {kept["ema_top1_flip"]:.2f} % | |
| raw weights (not kept) | {kept["top1"]:.2f} % | |

## Data and recipe

{kept["train_images"]:,} training images, {kept["epochs"]} epochs with
[configs/{name}.yaml](../configs/{name}.yaml) and `--train.precision {kept["precision"]}`, seed {kept["seed"]}:
{kept["minutes"]:.0f} minutes on an {kept["cpu"]}, torch {kept["versions"]["torch"]}, commit {kept["git_commit"]}.

## How to use

`tinyimnet predict results/{name}.safetensors --images FOLDER --out labels.csv` classifies a folder of images.

{model_card.elsewhere(f"results/{name}.safetensors", IMAGE_SIZE)}
{model_card.limits(200, IMAGE_SIZE)}"""


def step_seconds(run: Record) -> dict[float, float]:
    """Median seconds per step at each resolution."""
    times: dict[float, list[float]] = {}
    for line in run.lines:
        times.setdefault(line["train/resolution"], []).append(line["perf/step_ms"] / 1000)
    return {resolution: statistics.median(seconds) for resolution, seconds in times.items()}


def row(kept: dict[str, Any]) -> str:
    """Format a row of the table in the README."""
    raw, ema, flip = (f"{kept[key]:.2f}" for key in ("top1", "ema_top1", "ema_top1_flip"))
    name, minutes = kept["run"], f"{kept['minutes']:.0f}"
    cells = [f"[{name}](configs/{name}.yaml)", f"{kept['parameters']:,}", f"{kept['epochs']}", minutes]
    return f"| {' | '.join(cells)} | {raw} | **{ema}** | {flip} |"


if __name__ == "__main__":
    sys.exit(errors.run(main, sys.argv[1:]))

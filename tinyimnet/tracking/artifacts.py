"""Uploads from a run folder to its W&B run other than rows: images, tables, weights and code."""

import csv
import json
from pathlib import Path
from typing import Any

import wandb

from tinyimnet.evaluation.model_card import CARD
from tinyimnet.files import ROOT, read_text

# An explicit list, so that slurm/site.env and other private files beside the code are never uploaded.
CODE = (
    "train.py", "tinyimnet/**/*.py", "tinyimnet/report/templates/*", "launch/*.py", "slurm/*.sbatch", "slurm/*.sh",
    "configs/*.yaml", "configs/*/*.yaml", "requirements.txt"
)  # fmt: skip
INPUT = "media/augmented"


def send_input(run: Any, run_dir: Path) -> None:
    """Upload the picture of augmented training images."""
    run.log({INPUT: wandb.Image(str(run_dir / "augmented.png"))})


def send_code(run: Any) -> None:
    """Upload the source files as an artifact; W&B adds no version if they are unchanged."""
    patterns = CODE if (ROOT / "pyproject.toml").exists() else CODE[1:3]  # site-packages contains other packages too
    files = {str(path) for pattern in patterns for path in ROOT.glob(pattern)}
    run.log_code(str(ROOT), name=f"source-{run.project}", include_fn=lambda path: path in files)


def send_results(run: Any, run_dir: Path, results: dict[str, Any]) -> None:
    """Upload the images and tables of RUN/evaluation, the numbers of DONE as the run's summary, and the weights.

    The weights are versions of the artifact model-<run id>, with the alias `final` for the end of the run and `best`
    for its best epoch.
    """
    folder = run_dir / "evaluation"
    pictures: dict[str, Any] = {f"evaluation/{path.stem}": wandb.Image(str(path)) for path in folder.glob("*.png")}
    tables = {f"evaluation/{path.stem}_table": table(path) for path in folder.glob("*.csv") if path.stem != "confusion"}
    run.log(pictures | tables)
    run.summary.update(results)
    for alias in ("best", "final"):  # in this order, so that `latest` is the final one
        file = run_dir / f"{alias}.safetensors"
        if file.exists():
            card = run_dir / CARD
            model = wandb.Artifact(f"model-{run.id}", "model", description=read_text(card), metadata=results)
            for part in (file, card, run_dir / "config.yaml"):
                model.add_file(str(part), skip_cache=True)
            run.log_artifact(model, aliases=[alias])


def table(path: Path) -> wandb.Table:
    """Read a .csv file as a W&B table, with numeric cells as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return wandb.Table(columns=[*header], data=[[number(cell) for cell in row] for row in rows])


def number(cell: str) -> Any:
    """The cell as an int or float if it is one, else as text."""
    try:
        value = json.loads(cell)
    except ValueError:
        return cell
    return value if isinstance(value, int | float) else cell

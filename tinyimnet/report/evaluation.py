"""The output of `tinyimnet evaluate` in a run folder, as tiles and tables."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from tinyimnet.console import command
from tinyimnet.errors import UserError
from tinyimnet.files import exists, read_text
from tinyimnet.report.formats import percent
from tinyimnet.report.parts import Table, Tile
from tinyimnet.run.record import read_object


@dataclass(frozen=True)
class Evaluation:
    """An evaluation; parts whose file is missing are empty.

    Attributes:
        figures: key figures of the whole split.
        classes: all classes, lowest accuracy first.
        confused: pairs of classes, most often confused first.
        calibration: accuracy by confidence.
    """

    figures: list[Tile]
    classes: Table
    confused: Table
    calibration: Table


def read_evaluation(folder: Path) -> Evaluation:
    """Read the evaluation in a folder, which need not exist.

    Raises:
        UserError: a file is damaged.
    """
    return Evaluation(
        figures=_figures(folder / "results.json"),
        classes=_classes(folder / "per_class.csv"),
        confused=_confused(folder / "most_confused.csv"),
        calibration=_calibration(folder / "calibration.csv"),
    )


def _figures(file: Path) -> list[Tile]:
    if not (results := read_object(file)):
        return []
    try:
        what = f"{results['images']:,} {results['split']} images, TTA: {results['tta']}"
        weights = f"{Path(results['weights']).name}, step {results['step']:,}"
        return [
            Tile("top-1", percent(results["top1"]), what),
            Tile("top-5", percent(results["top5"]), weights),
            Tile("loss", f"{results['loss']:.4f}", "cross-entropy"),
            Tile("calibration error", percent(results["ece"]), "ECE, 15 bins"),
        ]
    except KeyError as error:
        raise _damaged(file, f"no {error}") from None


def _classes(file: Path) -> Table:
    rows = _read_csv(file, "name", "images", "correct", "top1_percent")
    ranked = sorted(rows, key=lambda row: float(row["top1_percent"]))
    return Table(
        ("class", "top-1 [%]", "correct", "most often confused with"),
        "lrrl",
        [
            (
                row["name"],
                row["top1_percent"],
                f"{row['correct']}/{row['images']}",
                row["most_often_taken_for"],
            )
            for row in ranked
        ],
    )


def _confused(file: Path) -> Table:
    columns = ("true_name", "predicted_name", "images", "percent_of_true")
    rows = [[row[column] for column in columns] for row in _read_csv(file, *columns)]
    return Table(("true class", "predicted class", "images", "share of true class [%]"), "llrr", rows)


def _calibration(file: Path) -> Table:
    rows = _read_csv(file, "low", "high", "images", "confidence", "accuracy")
    return Table(
        ("confidence [%]", "images", "mean confidence [%]", "accuracy [%]"),
        "lrrr",
        [
            (
                f"{float(row['low']):.0f} to {float(row['high']):.0f}",
                row["images"],
                row["confidence"],
                row["accuracy"],
            )
            for row in rows
            if int(row["images"])
        ],
    )


def _read_csv(file: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a CSV file, each with a value in all of these columns; empty if the file is missing.

    Raises:
        UserError: a row lacks one of the columns.
    """
    if not exists(file):
        return []
    rows = list(csv.DictReader(io.StringIO(read_text(file))))
    for column in columns:
        if any(not row.get(column) for row in rows):
            raise _damaged(file, f"no value in column {column}")
    return rows


def _damaged(file: Path, where: str) -> UserError:
    run = file.parent.parent
    return UserError(f"{file} is damaged ({where}); recreate it with: {command('evaluate', run)}.")

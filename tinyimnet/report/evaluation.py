"""What `python -m tinyimnet evaluate` wrote into a run folder, as tiles and tables."""

import csv
from dataclasses import dataclass
from pathlib import Path

from tinyimnet.errors import UserError
from tinyimnet.report.formats import percent
from tinyimnet.report.parts import Table, Tile
from tinyimnet.run.record import read_object


@dataclass(frozen=True)
class Evaluation:
    """An evaluation; a part whose file is missing is empty.

    Attributes:
        figures: of the whole split.
        classes: each class, the one with the lowest accuracy first.
        confused: pairs of classes, the one with the most mistakes first.
        calibration: how often the network is right, by how sure it is.
    """

    figures: list[Tile]
    classes: Table
    confused: Table
    calibration: Table


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in a folder, which need not exist.

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
        what = f"{results['images']:,} {results['split']} images, tta {results['tta']}"
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
        ("class", "top-1 [%]", "right", "most often taken for"),
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
    return Table(("class", "taken for", "images", "of the class [%]"), "llrr", rows)


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
    """The rows of a CSV file, none of which lacks one of these columns; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for column in columns:
        if any(not row.get(column) for row in rows):
            raise _damaged(file, f"column {column}")
    return rows


def _damaged(file: Path, where: str) -> UserError:
    run = file.parent.parent
    return UserError(f"{file} is damaged ({where}); write it again: python -m tinyimnet evaluate {run}.")

"""Evaluation of a network, on predictions that are few enough to count by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tinyimnet.evaluation import analysis
from tinyimnet.evaluation.analysis import Pair
from tinyimnet.evaluation.weights import Trained

NAMES = ("goldfish", "tailed frog", "bullfrog")
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 2, 1, 2])
SURE = np.array([0.9, 0.8, 0.6, 0.7, 0.9, 0.6, 0.5, 0.9])


def write(out: Path) -> Path:
    trained = Trained(
        nn.Identity(), Path("final.safetensors"), 7, ("n0", "n1", "n2"), NAMES, (0.5,) * 3, (0.2,) * 3, "fp32", {}
    )
    probabilities = np.repeat((1 - SURE)[:, None] / 2, 3, axis=1)
    probabilities[np.arange(8), PREDICTED] = SURE
    images = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    found = torch.from_numpy(probabilities).float().log()
    analysis.write(out, trained, images, LABELS, found, split="val", tta="none")
    return out


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write(tmp_path / "evaluation")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_class_has_its_accuracy_and_its_most_frequent_confusion(written: Path) -> None:
    rows = table(written / "per_class.csv")
    assert [row["top1_percent"] for row in rows] == ["50.00", "66.67", "100.00"]
    assert [row["most_often_taken_for"] for row in rows] == ["tailed frog", "bullfrog", ""]


def test_confused_pairs_are_sorted_by_the_number_of_errors(written: Path) -> None:
    rows = table(written / "most_confused.csv")
    assert [(row["true_name"], row["predicted_name"], row["images"]) for row in rows] == [
        ("goldfish", "tailed frog", "2"),
        ("tailed frog", "bullfrog", "1"),
    ]


def test_pairs_with_equally_many_errors_keep_the_order_of_the_classes() -> None:
    counts = np.array([[5, 1, 2], [2, 5, 0], [1, 1, 5]])
    assert analysis.most_confused(counts, 3) == [Pair(0, 2, 2), Pair(1, 0, 2), Pair(0, 1, 1)]


def test_the_calibration_error_compares_confidence_with_accuracy() -> None:
    # Two bins: four images at 50 % confidence, all correct, and one image at 90 %, wrong.
    bins = analysis.calibration(np.array([0.5, 0.5, 0.5, 0.5, 0.9]), np.array([1, 1, 1, 1, 0], dtype=bool))
    assert bins[:, 2].sum() == 5
    assert analysis.expected_calibration_error(bins) == pytest.approx((4 * 50 + 1 * 90) / 5)


def test_confidence_equal_to_accuracy_has_no_calibration_error() -> None:
    right = np.arange(1000) < 750
    bins = analysis.calibration(np.full(1000, 0.75), right)
    assert analysis.expected_calibration_error(bins) == pytest.approx(0)


@pytest.mark.parametrize("sure", [0.0, 1 / 15, 1.0])
def test_a_confidence_on_a_bin_edge_is_counted_once(sure: float) -> None:
    assert analysis.calibration(np.array([sure]), np.array([True]))[:, 2].sum() == 1


def test_the_same_predictions_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    assert files.keys() >= {
        "results.json",
        "confusion.png",
        "reliability.png",
        "most_confused.png",
        "calibration.csv",
    }
    assert {path.name: path.read_bytes() for path in write(tmp_path / "again").iterdir()} == files

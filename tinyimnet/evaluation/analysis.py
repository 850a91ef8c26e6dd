"""What a network gets right and wrong on a split, written to RUN/evaluation.

results.json                      top-1, top-5 and calibration error in percent; loss; the weights and images used
per_class.csv                     accuracy of each class and the class it is most often taken for
confusion.csv, .png               counts: rows are true classes, columns predictions
calibration.csv, reliability.png  accuracy as a function of confidence
most_confused.csv, .png           the pairs of classes with the most errors, with example images

The same log-probabilities give the same bytes.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinyimnet.data.augment import Normalise
from tinyimnet.evaluation import pictures
from tinyimnet.evaluation.inference import batched_log_probabilities
from tinyimnet.evaluation.weights import Trained
from tinyimnet.files import write_atomically, write_csv

BINS = 15  # as in Guo et al. 2017
PAIRS, ROWS, COLUMNS = 20, 8, 6  # pairs in the table, pairs in the picture, images per pair


@dataclass(frozen=True)
class Pair:
    """A pair of classes, as indices, and the number of images of the first that were taken for the second."""

    true: int
    predicted: int
    images: int


def log_probabilities(trained: Trained, images: np.ndarray, *, flip: bool = False) -> Tensor:
    """Compute log-probabilities on the device of the network, at its resolution; returns (N, K) float32 on the CPU.

    Args:
        trained: the network.
        images: (N, S, S, 3) uint8, RGB.
        flip: average the probabilities with those of the mirrored image.
    """
    device = next(trained.model.parameters()).device
    normalise = Normalise(trained.mean, trained.std, device)
    pieces = batched_log_probabilities(
        trained.model,
        torch.from_numpy(images),
        range(len(images)),
        normalise,
        precision=trained.precision,
        flip=flip,
        resolution=trained.resolution,
    )
    return torch.cat([piece.cpu() for _, piece in pieces])


def write(
    out: Path,
    trained: Trained,
    images: np.ndarray,
    labels: np.ndarray,
    log_probabilities: Tensor,
    *,
    split: str,
    tta: str,
) -> dict[str, Any]:
    """Write the tables and pictures of a split to a folder, creating the folder if needed.

    Args:
        out: the folder, such as RUN/evaluation.
        trained: the network; its class names and origin are recorded.
        images: (N, S, S, 3) uint8.
        labels: (N,) int64.
        log_probabilities: (N, K) float32, on the CPU.
        split: the split that the images are from.
        tta: test-time augmentation of the log-probabilities, none or flip.

    Returns:
        The contents of results.json.

    Raises:
        OSError: the folder cannot be written.
    """
    from tinyimnet.evaluation import plots

    out.mkdir(parents=True, exist_ok=True)
    top = log_probabilities.topk(min(5, log_probabilities.shape[1]), dim=1)
    hits = (top.indices == torch.from_numpy(labels)[:, None]).numpy()
    predicted, confidence = top.indices[:, 0].numpy(), top.values[:, 0].double().exp().numpy()
    confusion = confusion_matrix(labels, predicted, log_probabilities.shape[1])
    bins = calibration(confidence, hits[:, 0])
    pairs = most_confused(confusion)

    write_csv(out / "per_class.csv", _per_class(confusion, trained))
    write_csv(out / "confusion.csv", _confusion(confusion, trained))
    write_csv(out / "calibration.csv", _calibration(bins))
    write_csv(out / "most_confused.csv", _most_confused(pairs, confusion, trained))
    plots.confusion(confusion, out / "confusion.png")
    plots.reliability(bins, out / "reliability.png")
    rows = [
        (_heading(pair, confusion, trained), *_mistakes(pair, images, labels, predicted, confidence))
        for pair in pairs[:ROWS]
    ]
    pictures.image_rows(rows, out / "most_confused.png", COLUMNS)

    results = {
        "top1": 100 * hits[:, 0].mean(),
        "top5": 100 * hits.any(1).mean(),
        "loss": F.nll_loss(log_probabilities.double(), torch.from_numpy(labels)).item(),
        "ece": expected_calibration_error(bins),
        "images": len(labels),
        "resolution": trained.resolution,
        "split": split,
        "tta": tta,
        "weights": str(trained.origin),
        "step": trained.step,
    }
    write_atomically(out / "results.json", json.dumps(results, indent=1))
    return results


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts (K, K) int64 of labels (N,) int64, in rows, and predictions (N,) int64, in columns."""
    counts = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def calibration(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Accuracy of predictions, binned by confidence.

    Args:
        confidence: (N,) float64 probability of the prediction, in [0, 1].
        correct: (N,) bool.

    Returns:
        (15, 5) float64, a row for each bin of equal width: low, high, images, mean confidence, accuracy; in percent
        except for the images. A confidence on an edge is in the bin below it. Both means of an empty bin are 0.
    """
    edges = np.linspace(0, 1, BINS + 1)
    places = np.searchsorted(edges[1:-1], confidence)
    images = np.bincount(places, minlength=BINS)
    sums = [np.bincount(places, weights=values, minlength=BINS) for values in (confidence, correct)]
    means = [100 * total / np.maximum(1, images) for total in sums]
    return np.column_stack([100 * edges[:-1], 100 * edges[1:], images, *means])


def expected_calibration_error(bins: np.ndarray) -> float:
    """Mean |accuracy - confidence| in percent over the bins of `calibration`, weighted by their images.

    Naeini et al. 2015 (AAAI); for networks Guo et al. 2017, arXiv 1706.04599.
    """
    images, confidence, accuracy = bins[:, 2], bins[:, 3], bins[:, 4]
    return float((images * abs(accuracy - confidence)).sum() / images.sum())


def most_confused(confusion: np.ndarray, n: int = PAIRS) -> list[Pair]:
    """The n pairs (true, predicted) with the most errors; ties keep the order of the classes."""
    mistakes = confusion.copy()
    np.fill_diagonal(mistakes, 0)
    ranked = np.argsort(-mistakes, axis=None, kind="stable")[:n]
    places = zip(*np.unravel_index(ranked, mistakes.shape), strict=True)
    return [Pair(int(i), int(j), int(mistakes[i, j])) for i, j in places if mistakes[i, j]]


def _mistakes(
    pair: Pair, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Images of a pair on which the network was most confident, and captions with its confidence."""
    rows = np.flatnonzero((labels == pair.true) & (predicted == pair.predicted))
    rows = rows[np.argsort(-confidence[rows], kind="stable")][:COLUMNS]
    return images[rows], [f"{100 * confidence[row]:.0f} %" for row in rows]


def _heading(pair: Pair, confusion: np.ndarray, trained: Trained) -> str:
    names = f"{trained.names[pair.true]} -> {trained.names[pair.predicted]}"
    return f"{names}, {pair.images} of {confusion[pair.true].sum()}"


# ---- table rows, header first -------------------------------------------------------------------------------


def _per_class(confusion: np.ndarray, trained: Trained) -> Iterable[list]:
    yield ["class", "name", "images", "correct", "top1_percent", "most_often_taken_for"]
    for i, (row, wnid, name) in enumerate(zip(confusion, trained.classes, trained.names, strict=True)):
        wrong = row.copy()
        wrong[i] = 0
        mistaken = trained.names[wrong.argmax()] if wrong.any() else ""
        yield [wnid, name, row.sum(), row[i], f"{100 * row[i] / max(1, row.sum()):.2f}", mistaken]


def _confusion(confusion: np.ndarray, trained: Trained) -> Iterable[list]:
    yield ["true \\ predicted", *trained.classes]
    for wnid, row in zip(trained.classes, confusion, strict=True):
        yield [wnid, *row]


def _calibration(bins: np.ndarray) -> Iterable[list]:
    yield ["low", "high", "images", "confidence", "accuracy"]
    for low, high, images, confidence, accuracy in bins:
        yield [f"{low:.2f}", f"{high:.2f}", int(images), f"{confidence:.2f}", f"{accuracy:.2f}"]


def _most_confused(pairs: list[Pair], confusion: np.ndarray, trained: Trained) -> Iterable[list]:
    yield ["true", "true_name", "predicted", "predicted_name", "images", "percent_of_true"]
    for pair in pairs:
        share = 100 * pair.images / confusion[pair.true].sum()
        of, taken_for = [(trained.classes[k], trained.names[k]) for k in (pair.true, pair.predicted)]
        yield [*of, *taken_for, pair.images, f"{share:.2f}"]

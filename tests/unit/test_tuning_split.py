"""The images held out for tuning: fixed, the same share of each class, and disjoint from the rest."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinyimnet.data.dataset import Dataset, open_dataset, tuning_split


@pytest.fixture
def dataset(tiny_data: Path) -> Dataset:
    """Three classes of 100, 40 and 2 training images, in mixed order; the first pixel of an image is its number."""
    whole = open_dataset(tiny_data, verify=False)
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 40, 2]))
    images = np.zeros((len(labels), 64, 64, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return replace(
        whole,
        classes=("a", "b", "c"),
        images={**whole.images, "train": images},
        labels={**whole.labels, "train": labels},
    )


def test_one_in_twenty_of_each_class_is_held_out_and_at_least_one(dataset: Dataset) -> None:
    split = tuning_split(dataset)
    assert np.bincount(split.labels["val"]).tolist() == [5, 2, 1]
    assert np.bincount(split.labels["train"]).tolist() == [95, 38, 1]


def test_every_training_image_is_in_one_of_the_two_parts_with_its_label(dataset: Dataset) -> None:
    split = tuning_split(dataset)
    numbers = {part: split.images[part][:, 0, 0, 0] for part in ("train", "val")}
    assert sorted([*numbers["train"], *numbers["val"]]) == list(range(142))
    for part, rows in numbers.items():
        assert np.array_equal(split.labels[part], dataset.labels["train"][rows])


def test_the_held_out_images_are_the_same_every_time(dataset: Dataset) -> None:
    first, second = (tuning_split(dataset).images["val"] for _ in range(2))
    assert np.array_equal(first, second)

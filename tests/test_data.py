"""The images that are held out for tuning: fixed, the same share of each class, and apart from the rest."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import together

from tinyimnet import commandline, data, prepare, synthetic
from tinyimnet.config import DataConfig
from tinyimnet.errors import Busy, UserError
from tinyimnet.meeting import Meeting


@pytest.fixture
def dataset(tiny_data: Path) -> data.Dataset:
    """Three classes of 100, 40 and 2 training images, in mixed order; the first pixel of an image is its number."""
    whole = data.open_dataset(tiny_data, verify=False)
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 40, 2]))
    images = np.zeros((len(labels), 64, 64, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return replace(
        whole,
        classes=("a", "b", "c"),
        images={**whole.images, "train": images},
        labels={**whole.labels, "train": labels},
    )


def test_one_in_twenty_of_each_class_is_held_out_and_at_least_one(dataset: data.Dataset) -> None:
    split = data.tuning_split(dataset)
    assert np.bincount(split.labels["val"]).tolist() == [5, 2, 1]
    assert np.bincount(split.labels["train"]).tolist() == [95, 38, 1]


def test_every_training_image_is_in_one_of_the_two_parts_with_its_label(dataset: data.Dataset) -> None:
    split = data.tuning_split(dataset)
    numbers = {part: split.images[part][:, 0, 0, 0] for part in ("train", "val")}
    assert sorted([*numbers["train"], *numbers["val"]]) == list(range(142))
    for part, rows in numbers.items():
        assert np.array_equal(split.labels[part], dataset.labels["train"][rows])


def test_the_held_out_images_are_the_same_every_time(dataset: data.Dataset) -> None:
    first, second = (data.tuning_split(dataset).images["val"] for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("tune_split, expected", [(False, [200, 200]), (True, [0, 200])])
def test_the_configuration_decides(tune_split: bool, expected: list[int], arguments) -> None:
    settings = commandline.load(arguments(data__tune_split=tune_split))
    found = prepare.ready_dataset(settings.data, Meeting())
    # One image of each class: all of them are held out.
    assert [len(found.images["train"]), len(found.images["val"])] == expected


def test_a_node_whose_folder_holds_other_data_is_named(tiny_data: Path, tmp_path: Path) -> None:
    """Each is sound in itself: only what the ranks say of them tells."""
    other = tmp_path / "other"
    synthetic.prepare_synthetic(other, train_per_class=1, val_per_class=1, test_per_class=1, seed=1)
    roots = [str(tiny_data), str(tiny_data), str(other)]
    sentences = together(lambda m: prepare.ready_dataset(DataConfig(root=roots[m.rank]), m), 3)
    assert all("(rank 2) has other data at data.root" in sentence for sentence in sentences), sentences


def test_data_are_the_same_whatever_test_images_there_are(tiny_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    synthetic.prepare_synthetic(other, train_per_class=1, val_per_class=1, test_per_class=2)
    assert data.open_dataset(other).digest == data.open_dataset(tiny_data).digest


def test_runs_that_start_together_without_data_all_use_what_the_first_made(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    found = context.Queue()

    def start() -> None:
        settings = DataConfig(root=str(tmp_path / "drawn"), source="synthetic")
        found.put(len(prepare.ready_dataset(settings, Meeting(environ={})).images["train"]))

    runs = [context.Process(target=start) for _ in range(3)]
    for run in runs:
        run.start()
    assert [found.get(timeout=60) for _ in runs] == [8000] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]


def test_a_run_waits_for_the_download_of_another(tmp_path: Path, monkeypatch) -> None:
    tries = []

    def missing(root: Path, source: str) -> None:
        tries.append(source)
        if len(tries) < 3:
            raise Busy("tiny-imagenet-200.zip.part is being written by another process.")
        synthetic.prepare_synthetic(root, train_per_class=1, val_per_class=1, test_per_class=1)

    monkeypatch.setattr(prepare, "prepare_missing", missing)
    monkeypatch.setattr(prepare.time, "sleep", lambda _: None)
    prepare.ready_dataset(DataConfig(root=str(tmp_path / "tiny-imagenet-200")), Meeting(environ={}))
    assert tries == ["tiny-imagenet"] * 3


def test_a_folder_of_another_name_is_not_filled_with_tiny_imagenet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.root .*mine holds no prepared data set; run .* --out .*mine"):
        prepare.ready_dataset(DataConfig(root=str(tmp_path / "mine")), Meeting(environ={}))
    assert not list(tmp_path.iterdir())

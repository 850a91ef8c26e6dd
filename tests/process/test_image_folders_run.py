"""A folder of pictures of any size, as a user takes it from `prepare` over a training to a prediction."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.here import train_here
from helpers.program import python
from tinyimnet import cli
from tinyimnet.evaluation.weights import load_trained

CLASSES = [f"class_{i}" for i in range(10)]


def picture(number: int) -> Image.Image:
    """Return noise around the colour of a class, from 40 to 400 pixels wide, upright or lying."""
    rng = np.random.default_rng(number)
    width, height = rng.integers(40, 400, 2)
    colour = np.random.default_rng(number // 10).integers(0, 256, 3)
    noise = rng.normal(colour, 60, (height, width, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(100):
        file = folder / CLASSES[number // 10] / f"{number}.{('jpg', 'png', 'webp')[number % 3]}"
        file.parent.mkdir(exist_ok=True)
        picture(number).save(file)
    return folder


def predicted(run: Path, *options: str) -> dict[str, str]:
    out = run.with_name("labels.csv")
    assert cli.main(["predict", str(run), "--out", str(out), *options]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        return dict(list(csv.reader(file))[1:])


def test_pictures_are_prepared_trained_on_and_predicted(pictures: Path, tmp_path: Path) -> None:
    data, new = tmp_path / "data", tmp_path / "new"
    options = ("--val-share", "0.1", "--size", "64", "--fit", "pad")
    result = python("-m", "tinyimnet", "prepare", str(pictures), "--out", str(data), *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{data}: 90 train, 10 val images of 10 classes, from {pictures}",
        "layout: CLASS/, and --val-share 0.1 of each class as val",
        "images of other sizes: scaled to 64x64 pixels (--fit pad: fill up the shorter side with black)",
    ]

    run = train_here(data, tmp_path / "run", train__global_batch_size=15)
    assert load_trained(run).step == 12

    new.mkdir()
    for file in pictures.glob("*/*"):
        shutil.copy(file, new)
    picture(1000).save(new / "new.jpg")
    from_files = predicted(run, "--images", str(new))
    assert from_files.pop("new.jpg") in CLASSES
    from_arrays = [label for split in ("train", "val") for label in predicted(run, "--split", split).values()]
    assert sorted(from_files.values()) == sorted(from_arrays)
    assert len(set(from_arrays)) > 2

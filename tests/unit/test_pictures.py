"""Pictures with captions."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tinyimnet.config import AugmentConfig, Config, TrainConfig
from tinyimnet.data.batches import TrainBatches
from tinyimnet.data.dataset import open_dataset
from tinyimnet.evaluation import pictures


def grid(path: Path, titles: list[str], **options: int) -> np.ndarray:
    images = np.zeros((len(titles), 32, 32, 3), dtype=np.uint8)
    pictures.image_grid(images, titles, path, **options)
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_images_fill_rows_of_the_given_number_of_columns(tmp_path: Path) -> None:
    one_row, two_rows = (grid(tmp_path / f"{n}.png", ["cat"] * n, columns=4) for n in (4, 5))
    assert one_row.shape[1] == two_rows.shape[1]
    assert one_row.shape[0] < two_rows.shape[0] < 2 * one_row.shape[0] + 1


def test_a_caption_stays_below_its_image(tmp_path: Path) -> None:
    """A word that is too wide is truncated."""
    first, second = (grid(tmp_path / f"{n}.png", [title, ""]) for n, title in enumerate(("cat", "cat" * 100)))
    below = first.shape[0] - pictures.GAP - pictures.LINE
    changed = np.argwhere((first != second).any(2))
    assert len(changed) > 20
    assert changed[:, 0].min() >= below
    assert changed[:, 1].max() < pictures.GAP + pictures.SIDE


def test_a_long_caption_is_wrapped_and_not_cut(tmp_path: Path) -> None:
    long = "72 % German short-haired pointer"
    one, wrapped = (grid(tmp_path / f"{n}.png", [title]) for n, title in enumerate(("pointer", long)))
    assert wrapped.shape[0] == one.shape[0] + pictures.LINE
    assert " ".join(pictures._wrapped(long, pictures.SIDE)) == long


def test_the_caption_of_a_mixture_has_both_names_and_shares(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data)
    mixed, plain = (
        AugmentConfig(mixup_probability=share, mixup_alpha=5.0, label_smoothing=0.1) for share in (1.0, 0.0)
    )
    captions = {}
    for name, augment in (("mixed", mixed), ("plain", plain)):
        config = Config(augment=augment, train=TrainConfig(global_batch_size=8))
        batches = TrainBatches.of_run(config, dataset, torch.device("cpu"))
        captions[name] = pictures.augmented(batches, dataset.names, step=0, count=8)[1]
    assert set(captions["plain"]) <= set(dataset.names)
    assert all(re.fullmatch(r"\d+ % .+\n\d+ % .+", text) for text in captions["mixed"])


def test_rows_without_images_keep_their_heading(tmp_path: Path) -> None:
    pictures.image_rows([("nothing", np.zeros((0, 64, 64, 3), dtype=np.uint8), [])], tmp_path / "rows.png", columns=6)
    with Image.open(tmp_path / "rows.png") as picture:
        assert np.asarray(picture).min() < 128

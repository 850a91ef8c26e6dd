"""Pictures with captions."""

from pathlib import Path

import numpy as np
from PIL import Image

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
    first, second = (grid(tmp_path / f"{n}.png", [title, ""]) for n, title in enumerate(("cat", "cat" * 100)))
    below = first.shape[0] - pictures.GAP - pictures.LINE
    changed = np.argwhere((first != second).any(2))
    assert len(changed) > 20
    assert changed[:, 0].min() >= below
    assert changed[:, 1].max() < pictures.GAP + pictures.SIDE


def test_rows_without_images_keep_their_heading(tmp_path: Path) -> None:
    pictures.image_rows([("nothing", np.zeros((0, 64, 64, 3), dtype=np.uint8), [])], tmp_path / "rows.png", columns=6)
    with Image.open(tmp_path / "rows.png") as picture:
        assert np.asarray(picture).min() < 128

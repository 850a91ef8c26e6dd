"""The synthetic data set: deterministic, with classes that differ in shape and pattern alone, in the prepared form."""

import numpy as np
import pytest

from tinyimnet.data import synthetic
from tinyimnet.data.dataset import open_dataset
from tinyimnet.errors import UserError

N_CLASSES = 200


@pytest.fixture(scope="module")
def train() -> tuple[np.ndarray, np.ndarray]:
    """2000 images, (2000, 64, 64, 3) uint8, and their labels (2000,)."""
    labels = np.tile(np.arange(N_CLASSES), 10)
    return synthetic.draw(labels, seed=1), labels


@pytest.fixture(scope="module")
def val() -> tuple[np.ndarray, np.ndarray]:
    labels = np.tile(np.arange(N_CLASSES), 5)
    return synthetic.draw(labels, seed=2), labels


def nearest_mean_accuracy(train: tuple, val: tuple) -> float:
    """Return the share of val rows (N, D) whose nearest class mean of the train rows is that of their label."""
    means = np.stack([train[0][train[1] == label].mean(axis=0) for label in range(N_CLASSES)])
    score = val[0] @ means.T - 0.5 * (means**2).sum(axis=1)
    return float((score.argmax(axis=1) == val[1]).mean())


def test_200_classes_with_ids_in_label_order():
    ids, names = zip(*synthetic.CLASSES, strict=True)
    assert ids[0] == "s000" and names[0] == "disc, solid"
    assert list(ids) == sorted(set(ids)) and len(set(ids)) == len(set(names)) == N_CLASSES


def test_an_image_depends_on_seed_index_and_label_only(train):
    images, labels = train
    assert images.shape == (len(labels), 64, 64, 3) and images.dtype == np.uint8
    n = synthetic.CHUNK + 5  # one whole chunk and a part of the next
    np.testing.assert_array_equal(synthetic.draw(labels[:n], seed=1), images[:n])
    others = labels[:n].copy()
    others[1::2] = (others[1::2] + 37) % N_CLASSES
    changed = (synthetic.draw(others, seed=1) != images[:n]).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, others != labels[:n])
    assert (synthetic.draw(labels[:n], seed=3) != images[:n]).any(axis=(1, 2, 3)).all()


def test_chunk_size_does_not_change_what_is_rendered(train):
    labels = train[1][:40]
    uniforms = np.random.default_rng(0).random((40, sum(synthetic.UNIFORMS.values())), np.float32)
    parts = [synthetic._render(labels[i : i + 7], uniforms[i : i + 7]) for i in range(0, 40, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), synthetic._render(labels, uniforms))


def test_colours_do_not_reveal_the_class(train, val):
    mean_colour = [(images.mean(axis=(1, 2)), labels) for images, labels in (train, val)]
    assert nearest_mean_accuracy(*mean_colour) < 3 / N_CLASSES
    pixels = [
        (images[:, ::2, ::2].reshape(len(images), -1).astype(np.float32), labels) for images, labels in (train, val)
    ]
    assert nearest_mean_accuracy(*pixels) < 0.05


def test_every_two_classes_look_different_even_mirrored():
    one = np.full((1, sum(synthetic.UNIFORMS.values())), 0.5, np.float32)  # upright, in the middle
    images = synthetic._render(np.arange(N_CLASSES), one.repeat(N_CLASSES, axis=0)).mean(axis=1)
    assert np.isfinite(images).all()
    rows, mirrored = (a.reshape(N_CLASSES, -1) for a in (images, images[:, :, ::-1]))
    for others in (rows, mirrored):
        difference = np.stack([((row - others) ** 2).sum(axis=1) for row in rows])
        np.fill_diagonal(difference, np.inf)
        assert difference.min() > 3  # equivalent to three pixels that change from black to white


def test_prepared_folder_opens_and_its_splits_share_no_image(tmp_path):
    out = tmp_path / "synthetic"
    manifest = synthetic.prepare_synthetic(out, train_per_class=2, val_per_class=1, test_per_class=1, seed=5)
    data = open_dataset(out)
    assert manifest["origin"] == "tinyimnet.data.synthetic, seed 5"
    assert list(zip(data.classes, data.names, strict=True)) == synthetic.CLASSES
    assert {split: len(images) for split, images in data.images.items()} == {
        "train": 400,
        "val": 200,
        "test": 200,
    }
    assert data.test_files[:2] == ("test_0.png", "test_1.png") and len(data.test_files) == 200
    assert data.labels["train"].dtype == np.int64
    np.testing.assert_array_equal(np.bincount(data.labels["train"]), np.full(N_CLASSES, 2))
    assert not (np.diff(data.labels["train"]) >= 0).all()  # shuffled
    assert len({image.tobytes() for images in data.images.values() for image in images}) == 800


def test_a_split_without_images_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="val_per_class is 0"):
        synthetic.prepare_synthetic(tmp_path / "out", val_per_class=0)

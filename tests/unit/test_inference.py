"""Evaluation and prediction of a split, in batches and in parts by rank."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyimnet.config import ModelConfig
from tinyimnet.data.augment import Normalise, resize
from tinyimnet.evaluation.inference import batched_log_probabilities, evaluate, rows_of_rank
from tinyimnet.model.network import build_model

N, K = 23, 7
IMAGES = torch.randint(0, 256, (N, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % K
NORMALISE = Normalise((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(ModelConfig(block="basic", widths=(8,), depths=(1,), width=1.0, stem_stride=2), K)


def log_probabilities(model: torch.nn.Module, **options: int) -> torch.Tensor:
    pieces = batched_log_probabilities(model, IMAGES, range(N), NORMALISE, precision="fp32", **options)
    return torch.cat([piece for _, piece in pieces])


def test_rows_are_normalised_log_probabilities_in_order(model) -> None:
    expected = model.eval()(NORMALISE(IMAGES)).log_softmax(1)
    torch.testing.assert_close(log_probabilities(model, batch_size=5), expected, atol=1e-5, rtol=1e-5)


def test_flip_averages_the_probabilities_of_the_mirrored_image(model) -> None:
    mirrored = model.eval()(NORMALISE(IMAGES.flip(2))).softmax(1)
    expected = (log_probabilities(model).exp() + mirrored) / 2
    torch.testing.assert_close(log_probabilities(model, flip=True).exp(), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(log_probabilities(model, flip=True), log_probabilities(model))


def test_the_network_sees_images_of_the_smaller_resolution(model) -> None:
    expected = model.eval()(NORMALISE(resize(IMAGES, 40))).log_softmax(1)
    torch.testing.assert_close(log_probabilities(model, resolution=40), expected, atol=1e-5, rtol=1e-5)


def test_images_of_another_size_are_seen_as_they_are(model) -> None:
    images = resize(IMAGES, 48)
    pieces = batched_log_probabilities(model, images, range(N), NORMALISE, precision="fp32")
    expected = model.eval()(NORMALISE(images)).log_softmax(1)
    torch.testing.assert_close(torch.cat([piece for _, piece in pieces]), expected, atol=1e-5, rtol=1e-5)


@given(n=st.integers(0, 1000), world_size=st.integers(1, 64))
def test_ranks_take_each_row_once(n: int, world_size: int) -> None:
    rows = [row for rank in range(world_size) for row in rows_of_rank(n, rank, world_size)]
    assert rows == list(range(n))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_sums_over_ranks_equal_the_sums_of_one_process(world_size: int, model) -> None:
    whole = evaluate(model, IMAGES, LABELS, range(N), NORMALISE, precision="fp32")
    parts = [rows_of_rank(N, rank, world_size) for rank in range(world_size)]
    summed = sum(evaluate(model, IMAGES, LABELS, part, NORMALISE, precision="fp32") for part in parts)
    assert whole.dtype == torch.float64
    assert whole[3] == N
    torch.testing.assert_close(summed, whole, atol=1e-4, rtol=1e-6)

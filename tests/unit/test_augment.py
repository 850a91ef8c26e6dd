"""Crop, flip, mixing and targets: the images match their labels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinyimnet.config import AugmentConfig
from tinyimnet.data import augment
from tinyimnet.data.batches import TrainBatches, draw

K = 200


def images(n: int = 12, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def reflect(position: int) -> int:
    position = abs(position)
    return position if position < 64 else 126 - position


@pytest.mark.parametrize("down, right, mirror", [(0, 0, 0), (4, -3, 0), (-4, 4, 1), (0, 2, 1)])
def test_crop_shifts_reflects_at_the_border_and_mirrors(down: int, right: int, mirror: int) -> None:
    source = images(3)
    result = augment.crop_flip(source, *(torch.tensor([value]) for value in (2, down, right, mirror)))
    rows = [reflect(y + down) for y in range(64)]
    columns = [reflect((63 - x if mirror else x) + right) for x in range(64)]
    assert np.array_equal(result[0].numpy(), source[2].numpy()[rows][:, columns])


def test_crop_matches_numpys_reflection_padding() -> None:
    source = images(1)
    padded = np.pad(source[0].numpy(), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    result = augment.crop_flip(source, *(torch.tensor([value]) for value in (0, 3, -2, 0)))
    assert np.array_equal(result[0].numpy(), padded[7:71, 2:66])


@pytest.mark.parametrize("size", [32, 96])
def test_the_widest_padding_suits_images_of_any_size(size: int) -> None:
    source = images(1, size)
    padded = np.pad(source[0].numpy(), ((31, 31), (31, 31), (0, 0)), mode="reflect")
    result = augment.crop_flip(source, *(torch.tensor([value]) for value in (0, 31, -31, 0)))
    assert np.array_equal(result[0].numpy(), padded[62 : 62 + size, :size])


@pytest.mark.parametrize("size", [32, 64, 128])
def test_normalised_images_have_zero_mean_and_unit_variance_per_channel(size: int) -> None:
    source = images(20, size)
    pixels = source.float() / 255
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    normalise = augment.Normalise(tuple(mean.tolist()), tuple(std.tolist()), torch.device("cpu"))
    result = normalise(source)
    assert result.shape == (20, 3, size, size)
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = (pixels.permute(0, 3, 1, 2) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def mixed_batch(config: AugmentConfig, *, n: int = 64, seed: int = 1, step: int = 0, size: int = 64):
    """Return a batch in which all pixels of sample i have the value i, so that a mixed pixel shows its sources."""
    flat = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, size, size, 3).contiguous()
    batches = TrainBatches(
        flat, torch.arange(n), K, mean=(0.0,) * 3, std=(1 / 255,) * 3, config=config,
        seed=seed, epochs=1, global_batch_size=n,
    )  # fmt: skip
    drawn = batches.draw(step)
    pixels, targets = batches.load(drawn, slice(0, n), step)
    return drawn, pixels[:, 0], targets.labels


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), mixup=st.floats(0, 1), alpha=st.floats(0.1, 4), smoothing=st.floats(0, 0.5))
def test_targets_sum_to_one_for_any_mixing(seed: int, mixup: float, alpha: float, smoothing: float) -> None:
    config = AugmentConfig(
        mixup_probability=mixup, mixup_alpha=alpha, cutmix_probability=1 - mixup, label_smoothing=smoothing
    )
    _, _, targets = mixed_batch(config, seed=seed)
    torch.testing.assert_close(targets.sum(1), torch.ones(64), atol=1e-5, rtol=0)
    assert (targets >= 0).all()


@pytest.mark.parametrize(("seed", "size"), [(0, 64), (1, 64), (2, 64), (0, 32), (0, 128)])
def test_cutmix_label_shares_are_the_shares_of_the_pixels(seed: int, size: int) -> None:
    drawn, pixels, targets = mixed_batch(AugmentConfig(cutmix_probability=1.0), seed=seed, size=size)
    for row in range(64):
        own, partner = drawn.views[row, 0], drawn.views[drawn.partners[row], 0]
        if own == partner:
            continue
        values = pixels[row].round()
        assert set(values.unique().tolist()) <= {float(own), float(partner)}
        share = (values == own).float().mean().item()
        assert targets[row, own].item() == pytest.approx(share, abs=1e-6)
        assert targets[row, partner].item() == pytest.approx(1 - share, abs=1e-6)


def test_mixup_label_shares_are_the_weights_of_the_pixels() -> None:
    drawn, pixels, targets = mixed_batch(AugmentConfig(mixup_probability=1.0, mixup_alpha=1.0))
    for row in range(64):
        own, partner = drawn.views[row, 0], drawn.views[drawn.partners[row], 0]
        expected = targets[row, own] * own + targets[row, partner] * partner if own != partner else own
        torch.testing.assert_close(pixels[row], torch.full((64, 64), float(expected)), atol=1e-3, rtol=1e-4)


def test_each_kind_of_mixing_takes_its_share_of_the_images() -> None:
    config = AugmentConfig(mixup_probability=0.3, cutmix_probability=0.5)
    drawn = draw(config, np.arange(20_000), np.zeros(20_000, int), seed=0, step=0, mix=True, size=64)
    boxed = drawn.boxes.any(1)
    assert (drawn.blend < 1).mean() == pytest.approx(0.3, abs=0.02)
    assert boxed.mean() == pytest.approx(0.5, abs=0.02)
    assert not (boxed & (drawn.blend < 1)).any()


@pytest.mark.parametrize("size", [64, 96])
def test_boxes_cover_opposite_edges_of_the_images_equally_often(size: int) -> None:
    """Five standard errors of the difference; a centre drawn from the integers 0 to 63 is off by eight."""
    n = 200_000
    config = AugmentConfig(cutmix_probability=1.0)
    y0, y1, x0, x1 = draw(config, np.arange(n), np.zeros(n, int), seed=0, step=0, mix=True, size=size).boxes.T
    for start, end in ((y0, y1), (x0, x1)):
        first, last = ((start == 0) & (end > 0)).mean(), ((end == size) & (start < size)).mean()
        assert abs(first - last) < 5 * (2 * first / n) ** 0.5
        assert (end - start).mean() > 0


def test_boxes_cover_the_same_share_of_images_of_any_size() -> None:
    n, config = 2000, AugmentConfig(cutmix_probability=1.0)
    shares = [
        draw(config, np.arange(n), np.zeros(n, int), seed=0, step=0, mix=True, size=size).own_share().mean()
        for size in (32, 64, 128)
    ]
    assert shares == pytest.approx([shares[1]] * 3, abs=0.01)


def test_mixing_stops_for_the_last_part_of_the_training() -> None:
    config = AugmentConfig(mixup_probability=0.5, cutmix_probability=0.5, mix_until=0.5)
    batches = TrainBatches(
        images(8), torch.arange(8), K, mean=(0.5,) * 3, std=(0.5,) * 3, config=config,
        seed=0, epochs=4, global_batch_size=4,
    )  # fmt: skip
    assert [batches.draw(step).mixed for step in range(8)] == [True] * 4 + [False] * 4


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    labels = torch.tensor([3])
    targets = augment.soft_targets(labels, labels, torch.tensor([1.0]), K, 0.1)
    assert targets[0, 3].item() == pytest.approx(0.9 + 0.1 / K)
    assert targets[0, 4].item() == pytest.approx(0.1 / K)


@pytest.mark.parametrize("resolution", [40, 80])
def test_resize_matches_pillows_bicubic_and_is_a_no_op_at_full_size(resolution: int) -> None:
    source = images(2)
    assert augment.resize(source, 64) is source
    resized = augment.resize(source, resolution)
    assert (resized.shape, resized.dtype) == ((2, resolution, resolution, 3), torch.uint8)
    for image, found in zip(source.numpy(), resized.numpy(), strict=True):
        exact = np.asarray(Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BICUBIC))
        assert np.abs(found.astype(int) - exact).max() <= 2  # torch's weights have 15 bits, Pillow's 22


@pytest.mark.parametrize("resolution", [40, 80])
def test_a_mixing_weight_stays_within_0_and_1_at_another_resolution(resolution: int) -> None:
    weight = augment.weight_map(torch.ones(1), torch.tensor([[16], [48], [16], [48]]), 64, resolution)
    assert weight.shape == (1, 1, resolution, resolution)
    assert (weight.min().item(), weight.max().item()) == (0, 1)


@pytest.mark.parametrize("kind", ["mixup_probability", "cutmix_probability"])
@pytest.mark.parametrize(
    ("keys", "size"), [({"start_resolution": 40}, 40), ({"end_resolution": 80, "end_resolution_from": 0.0}, 80)]
)
def test_at_another_resolution_the_pixels_still_match_the_labels(kind: str, keys: dict[str, float], size: int) -> None:
    drawn, pixels, targets = mixed_batch(AugmentConfig(**{kind: 1.0}, **keys))
    assert pixels.shape == (64, size, size)
    for row in range(64):
        own, partner = drawn.views[row, 0], drawn.views[drawn.partners[row], 0]
        expected = targets[row, own] * own + targets[row, partner] * partner if own != partner else own
        assert pixels[row].mean().item() == pytest.approx(float(expected), abs=0.3)

"""Order and augmentation are functions of (seed, step) and do not depend on the number of processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyimnet.config import AugmentConfig
from tinyimnet.data import augment, batches
from tinyimnet.data.resolution import step_resolutions, work_left
from tinyimnet.errors import UserError

MIXING = AugmentConfig(mixup_probability=0.4, cutmix_probability=0.4, label_smoothing=0.1)


def train_batches(
    n: int = 96, global_batch_size: int = 32, config: AugmentConfig = MIXING, size: int = 64
) -> batches.TrainBatches:
    generator = torch.Generator().manual_seed(0)
    return batches.TrainBatches(
        torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator),
        torch.randint(0, 200, (n,), generator=generator),
        200,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        config=config,
        seed=3,
        epochs=2,
        global_batch_size=global_batch_size,
    )


def global_batch(source: batches.TrainBatches, step: int, world_size: int, device_batch_size: int = 0):
    """Return the images and targets of all ranks in a step, in rank order."""
    drawn = source.draw(step)
    parts = [
        source.load(drawn, rows, step)
        for rank in range(world_size)
        for rows in batches.micro_batches(source.global_batch_size, device_batch_size, world_size, rank)
    ]
    return torch.cat([x for x, _ in parts]), torch.cat([t.labels for _, t in parts])


@pytest.mark.parametrize("step", [0, 2, 5])
@pytest.mark.parametrize("world_size, device_batch_size", [(2, 0), (4, 0), (1, 8), (2, 4)])
def test_any_number_of_processes_sees_the_same_batch(step: int, world_size: int, device_batch_size: int) -> None:
    source = train_batches()
    images, targets = global_batch(source, step, 1)
    other_images, other_targets = global_batch(source, step, world_size, device_batch_size)
    assert torch.equal(images, other_images)
    assert torch.equal(targets, other_targets)


def test_a_batch_depends_on_nothing_that_ran_before() -> None:
    one, other = train_batches(), train_batches()
    for step in range(4):
        one.load(one.draw(step), slice(0, 32), step)
    torch.rand(100)
    np.random.rand(100)
    assert torch.equal(global_batch(one, 4, 1)[0], global_batch(other, 4, 1)[0])


def test_steps_and_seeds_differ() -> None:
    samples, mirror = np.arange(32), np.zeros(32, int)
    first, second = (batches.draw(MIXING, samples, mirror, seed=3, step=step, mix=True, size=64) for step in (0, 1))
    reseeded = batches.draw(MIXING, samples, mirror, seed=4, step=0, mix=True, size=64)
    assert not np.array_equal(first.views, second.views)
    assert not np.array_equal(first.views, reseeded.views)


@given(
    seed=st.integers(0, 2**40),
    n_samples=st.integers(1, 300),
    data=st.data(),
)
def test_an_epoch_takes_no_sample_twice(seed: int, n_samples: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, n_samples))
    steps = n_samples // size
    epoch = data.draw(st.integers(0, 5))
    taken = [batches.step_samples(seed, epoch * steps + i, n_samples, size) for i in range(steps)]
    assert len(np.unique(np.concatenate(taken))) == steps * size


def test_epochs_follow_different_orders() -> None:
    assert not np.array_equal(batches.epoch_order(0, 0, 100), batches.epoch_order(0, 1, 100))


@given(world_size=st.integers(1, 16), per_rank=st.integers(1, 64), limit=st.integers(0, 80))
def test_ranks_share_out_the_global_batch_without_gap_or_overlap(world_size: int, per_rank: int, limit: int) -> None:
    total = world_size * per_rank
    if limit and per_rank % min(limit, per_rank):
        with pytest.raises(UserError, match="train.device_batch_size"):
            batches.micro_batches(total, limit, world_size, 0)
        return
    slices = [rows for rank in range(world_size) for rows in batches.micro_batches(total, limit, world_size, rank)]
    assert [i for rows in slices for i in range(rows.start, rows.stop)] == list(range(total))
    assert len({rows.stop - rows.start for rows in slices}) == 1


def test_a_global_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="train.global_batch_size is 30 and must be divisible by the 4 processes"):
        batches.micro_batches(30, 0, 4, 0)


def test_fewer_images_than_a_global_batch_are_refused() -> None:
    with pytest.raises(UserError, match="train.global_batch_size is 64, more than the 32 training images"):
        train_batches(n=32, global_batch_size=64)


def test_the_seeds_of_the_network_differ_between_steps_and_passes() -> None:
    keys = [(0, 1, 0), (0, 2, 0), (0, 1, 8), (0, 1, 16), (1, 1, 0)]
    assert len({batches.model_seed(*key) for key in keys}) == len(keys)


def test_each_epoch_mirrors_the_half_that_the_previous_one_did_not() -> None:
    samples = np.arange(10_000)
    first, second, third = (batches.flipped(0, epoch, samples, 10_000) for epoch in range(3))
    assert np.array_equal(first, 1 - second)
    assert np.array_equal(first, third)
    assert 0.48 < first.mean() < 0.52
    assert np.array_equal(batches.flipped(0, 0, samples[::-1], 10_000), first[::-1])
    assert not np.array_equal(batches.flipped(1, 0, samples, 10_000), first)


@pytest.mark.parametrize("flip", [True, False])
def test_augment_flip_enables_mirroring(flip: bool) -> None:
    source = train_batches(config=AugmentConfig(flip=flip))
    assert source.draw(0).views[:, 3].any() == flip


def growing(start: int, full_from: float) -> AugmentConfig:
    return AugmentConfig(start_resolution=start, full_resolution_from=full_from)


def test_resolution_grows_in_steps_of_8_and_is_full_for_the_last_part() -> None:
    assert step_resolutions(growing(40, 0.8), 10).tolist() == [40, 40, 40, 48, 48, 48, 56, 56, 64, 64]
    assert step_resolutions(growing(40, 0.0), 2).tolist() == step_resolutions(growing(64, 0.8), 2).tolist() == [64, 64]
    assert step_resolutions(growing(32, 1.0), 20).max() == 56


@pytest.mark.parametrize(("size", "expected"), [(32, [16, 20, 24, 28, 32]), (84, [42, 52, 63, 73, 84])])
def test_images_of_another_size_follow_the_schedule_in_proportion(size: int, expected: list[int]) -> None:
    assert step_resolutions(growing(32, 0.8), 5, size).tolist() == expected
    assert step_resolutions(growing(64, 0.8), 2, size).tolist() == [size, size]


@pytest.mark.parametrize(("size", "end"), [(64, 80), (96, 120), (84, 105)])
def test_the_last_steps_may_be_above_the_size_of_the_images(size: int, end: int) -> None:
    config = replace(growing(64, 0.8), end_resolution=80)
    assert step_resolutions(config, 20, size).tolist() == [size] * 18 + [end] * 2
    assert step_resolutions(replace(config, end_resolution_from=0.5), 4, size).tolist() == [size, size, end, end]


def test_work_left_counts_pixels_and_not_steps() -> None:
    sizes = step_resolutions(growing(32, 0.5), 8)
    assert sizes.tolist() == [32, 40, 48, 56, 64, 64, 64, 64]
    assert work_left(sizes, 1, 3) == (56**2 + 4 * 64**2) / (40**2 + 48**2)
    assert work_left(sizes, 0, 8) == 0


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_batch_has_the_resolution_of_its_step(size: int) -> None:
    config = replace(growing(32, 0.5), end_resolution=128, end_resolution_from=0.8)
    source = train_batches(config=config, size=size)
    shapes = [source.load(source.draw(step), slice(0, 4), step)[0].shape[-1] for step in range(6)]
    assert shapes == [n * size // 8 for n in (4, 5, 6, 8, 8, 16)] == [source.resolution(step) for step in range(6)]


def test_after_the_last_step_the_resolution_is_at_least_the_images_own() -> None:
    """The last evaluation uses it, and `inspect --step` may ask for it."""
    config = growing(32, 1.0)
    assert [train_batches(config=config).resolution(step) for step in (5, 6)] == [56, 64]
    assert train_batches(config=replace(config, end_resolution=72, end_resolution_from=0.5)).resolution(6) == 72


@pytest.mark.parametrize("count", [96, 48, 20])
@pytest.mark.parametrize("start_resolution", range(16, 65, 8))
def test_plain_images_of_any_resolution_and_spacing(start_resolution: int, count: int) -> None:
    source = train_batches(config=AugmentConfig(start_resolution=start_resolution))
    resolution, spacing = (start_resolution + 64) // 2, 96 // count
    plain = source.plain(count)
    assert plain.shape == (len(range(0, 96, spacing)), 3, resolution, resolution)
    expected = source.normalise(augment.resize(source.images[::spacing].contiguous(), resolution))
    assert torch.equal(plain, expected)


def test_plain_images_of_another_size_have_half_the_way_to_their_own() -> None:
    source = train_batches(config=AugmentConfig(start_resolution=32), size=96)
    assert source.plain(96).shape[2:] == (72, 72)

"""The memory that a step needs on a GPU: estimated, refused at the start if it does not fit, named if it runs out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tinyimnet import config_cli
from tinyimnet.config import Config, TrainConfig
from tinyimnet.data.dataset import Dataset
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.errors import UserError
from tinyimnet.model.network import build_model
from tinyimnet.training import memory

ALONE = Rendezvous(environ={})


def tiny_imagenet(size: int = 64) -> Dataset:
    """The shapes of Tiny ImageNet, without its memory."""
    images = {
        split: np.broadcast_to(np.uint8(0), (n, size, size, 3)) for split, n in (("train", 100_000), ("val", 10_000))
    }
    labels = {split: np.zeros(len(of), np.int64) for split, of in images.items()}
    classes = tuple(map(str, range(200)))
    return Dataset(Path(), classes, classes, images, labels, (), (0.5,) * 3, (0.5,) * 3, "")


def settings(**overrides: object) -> Config:
    options = [f"--{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return config_cli.load(["--config=tiny1m", "--run.dir=x", "--model.width=0.9", "--model.head_width=0", *options])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Return a function that imitates a GPU with so many bytes of free memory."""
    return lambda free: monkeypatch.setattr(memory, "free_gpu_memory", lambda: free)


def test_tiny1m_saves_9_mb_per_image_in_bf16_and_twice_that_in_fp32() -> None:
    network = build_model(config_cli.load(["--config=tiny1m", "--run.dir=x"]).model, 200)
    assert memory.saved_per_image(network, 64, "bf16") == 8_858_720
    assert memory.saved_per_image(network, 64, "fp32") == 17_717_440


def test_a_lower_resolution_and_no_drop_path_save_less() -> None:
    whole, small = (build_model(settings(model__drop_path=p).model, 200) for p in (0.2, 0.0))
    saved = memory.saved_per_image(whole, 64, "bf16")
    assert memory.saved_per_image(small, 64, "bf16") < saved
    assert memory.saved_per_image(whole, 32, "bf16") < 0.26 * saved


def test_an_image_needs_memory_in_proportion_to_its_pixels() -> None:
    small, whole, large = (memory.footprint(settings(), tiny_imagenet(size)).per_image for size in (32, 64, 96))
    assert whole / small == pytest.approx(4, rel=0.02)
    assert large / whole == pytest.approx(9 / 4, rel=0.02)


def test_the_estimate_is_for_the_largest_resolution() -> None:
    end = settings(augment__end_resolution=96)
    assert memory.footprint(end, tiny_imagenet()).per_image == memory.footprint(settings(), tiny_imagenet(96)).per_image


def test_an_estimate_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    memory.footprint(settings(model__drop_path=0.2), tiny_imagenet())
    assert torch.equal(torch.rand(1), expected)


def test_the_data_set_counts() -> None:
    assert memory.footprint(settings(), tiny_imagenet()).fixed > memory.LIBRARIES + 110_000 * 64 * 64 * 3


@pytest.mark.parametrize("gigabytes, world_size", [(4, 1), (8, 1), (4, 4)])
def test_a_batch_that_cannot_fit_is_refused_with_the_largest_one_that_does(gigabytes: int, world_size: int) -> None:
    needed, free = memory.footprint(settings(), tiny_imagenet()), int(gigabytes * 1e9)
    per_rank = 1024 // world_size
    with pytest.raises(UserError, match=r"global_batch_size is 1024, so a step of \d+ images needs about") as error:
        memory._refuse(TrainConfig(), per_rank, needed, free, world_size)
    size = int(str(error.value).split("--train.device_batch_size ")[1].split()[0])
    assert per_rank % size == 0 and needed.of(size) <= free
    assert all(needed.of(larger) > free for larger in range(size + 1, per_rank + 1) if per_rank % larger == 0)
    memory._refuse(TrainConfig(device_batch_size=size), size, needed, free, world_size)


def test_a_gpu_without_room_for_one_image_is_refused(gpu) -> None:
    gpu(1 << 30)
    with pytest.raises(UserError, match="has 1.1 GB free; end the other processes on that GPU, or use one with more"):
        memory.check(settings(), tiny_imagenet(), ALONE)


def test_a_compiled_network_needs_less_and_is_not_refused(gpu, capsys) -> None:
    gpu(8 << 30)
    memory.check(settings(train__compile=True), tiny_imagenet(), ALONE)
    assert "a step needs at most about " in capsys.readouterr().out


def test_the_start_prints_what_a_step_needs(gpu, capsys) -> None:
    gpu(int(80e9))
    memory.check(settings(), tiny_imagenet(), ALONE)
    assert " GB of 80.0 GB on the GPU" in capsys.readouterr().out


def test_without_a_gpu_nothing_is_estimated(monkeypatch) -> None:
    monkeypatch.setattr(memory, "footprint", None)
    memory.check(settings(), tiny_imagenet(), ALONE)


@pytest.mark.parametrize(
    "train, world_size, way_out",
    [
        (TrainConfig(global_batch_size=1024), 1, "of 1024 images; use --train.device_batch_size 512 for"),
        (TrainConfig(global_batch_size=1024), 4, "of 256 images; use --train.device_batch_size 128 for"),
        (TrainConfig(global_batch_size=96, device_batch_size=9), 2, "of 9 images; use --train.device_batch_size 4 for"),
        (TrainConfig(global_batch_size=2), 2, "of 1 images; end the other processes on that GPU"),
    ],
)
def test_torchs_error_names_a_smaller_micro_batch(train: TrainConfig, world_size: int, way_out: str) -> None:
    with pytest.raises(UserError, match=way_out), memory.out_of_memory_named(train, world_size):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 26.00 GiB.")

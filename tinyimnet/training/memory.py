"""The GPU memory that a training step needs, estimated before anything is copied to the GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyimnet.config import Config, TrainConfig
from tinyimnet.console import console
from tinyimnet.data.batches import micro_batches
from tinyimnet.data.dataset import IMAGE_SIZE, Dataset
from tinyimnet.data.resolution import run_resolutions
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.errors import UserError
from tinyimnet.evaluation.inference import autocast
from tinyimnet.model.network import build_model, count_parameters

# An image adds 0.96 to 1.07 times the bytes that autograd saves for it to the peak of a step (CPU allocations of
# networks that save 1.4 to 123 MB an image; tests/process/test_memory.py).
TEMPORARY = 1.1
BATCH = 200_000  # bytes per image of 64 px: 49 kB in fp32, its partner, the mixed image, uint8
COPIES = 10  # of the weights in fp32: EMA, evaluation, gradients, their sums over ranks, two moments
LIBRARIES = 1 << 30  # bytes: workspaces of cuDNN and cuBLAS, buffers of NCCL (an estimate)


@dataclass(frozen=True)
class Footprint:
    """GPU memory of one process in bytes, as a function of the images in a micro-batch.

    Attributes:
        fixed: data set, weights, optimizer, libraries.
        per_image: activations, gradients of activations and the batch.
    """

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """Bytes for a micro-batch of `images`."""
        return self.fixed + images * self.per_image


def check(config: Config, dataset: Dataset, rendezvous: Rendezvous) -> None:
    """Print the GPU memory that a step needs, and refuse a micro-batch that does not fit; a no-op on CPUs.

    Raises:
        UserError: it does not fit on some rank; names the device_batch_size that does. Raised on every rank.
    """
    free = free_gpu_memory()
    if free is None:
        return
    ranks = rendezvous.world_size, rendezvous.rank
    rows = micro_batches(config.train.global_batch_size, config.train.device_batch_size, *ranks)[0]
    needed = footprint(config, dataset)
    rendezvous.on_all_ranks("memory", lambda: _refuse(config.train, rows.stop - rows.start, needed, free, ranks[0]))
    if rendezvous.is_main:
        most = "at most " if config.train.compile else ""
        console.print(f"a step needs {most}about {_gb(needed.of(rows.stop - rows.start))} of {_gb(free)} on the GPU")


def footprint(config: Config, dataset: Dataset) -> Footprint:
    """Estimate the memory of a run on `dataset`; the forward passes on the CPU take 0.1 to 0.3 s."""
    network = build_model(config.model, len(dataset.classes))
    resolution = int(run_resolutions(config, dataset)[-1])  # the largest one
    arrays = [*(of[split] for of in (dataset.images, dataset.labels) for split in ("train", "val"))]
    resident = sum(array.nbytes for array in arrays)
    if dataset.soft_labels is not None:
        resident += dataset.soft_labels.nbytes
    return Footprint(
        fixed=resident + 4 * COPIES * count_parameters(network) + LIBRARIES,
        per_image=int(TEMPORARY * saved_per_image(network, resolution, config.train.precision))
        + BATCH * max(resolution, dataset.image_size) ** 2 // IMAGE_SIZE**2,
    )


def saved_per_image(network: nn.Module, resolution: int, precision: str) -> int:
    """Bytes that autograd saves for the backward pass of each training image of (3, resolution, resolution).

    The difference between two images and three leaves out what does not grow with the batch, such as weights in bf16.
    """
    two, three = (_saved(network, resolution, precision, images) for images in (2, 3))
    return three - two


def _saved(network: nn.Module, resolution: int, precision: str, images: int) -> int:
    saved: dict[int, torch.UntypedStorage] = {}  # by address; a live storage keeps its address

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    x = torch.zeros(images, 3, resolution, resolution).contiguous(memory_format=torch.channels_last)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, autocast(x.device, precision), torch.random.fork_rng(devices=[]):
        network.train()(x)
    return sum(storage.nbytes() for storage in saved.values())


def free_gpu_memory() -> int | None:
    """Bytes that are free on the GPU of this process; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))[0]


@contextmanager
def out_of_memory_named(train: TrainConfig, world_size: int) -> Iterator[None]:
    """Convert torch's error to one that names a smaller train.device_batch_size.

    Raises:
        UserError: the GPU ran out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        per_rank = train.global_batch_size // world_size
        images = min(per_rank, train.device_batch_size or per_rank)
        # By half, because the estimate was wrong or another process has taken memory.
        raise UserError(
            f"the GPU ran out of memory with micro-batches of {images} images; {_way_out(per_rank, images // 2)}",
            every_rank=True,
        ) from error


def _refuse(train: TrainConfig, images: int, needed: Footprint, free: int, world_size: int) -> None:
    if needed.of(images) <= free or train.compile:  # Inductor recomputes some activations
        return
    fitting = max(0, free - needed.fixed) // needed.per_image
    key = "device_batch_size" if train.device_batch_size else "global_batch_size"
    raise UserError(
        f"train.{key} is {getattr(train, key)}, so a step of {images} images needs about {_gb(needed.of(images))} "
        f"but the GPU has {_gb(free)} free; {_way_out(train.global_batch_size // world_size, fitting)}"
    )


def _way_out(per_rank: int, most: int) -> str:
    """The largest micro-batch of at most `most` images that divides those of a process."""
    fitting = next((size for size in range(min(most, per_rank), 0, -1) if per_rank % size == 0), 0)
    if not fitting:
        return "end the other processes on that GPU, or use one with more memory."
    return f"use --train.device_batch_size {fitting} for the same recipe in smaller micro-batches."


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"

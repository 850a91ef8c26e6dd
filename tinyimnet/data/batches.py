"""The samples of each step and their augmentation: pure functions of (seed, step).

The host draws the whole *global* batch, and each process takes its rows. The images, crops and mixing partners are
therefore the same on 1 process and on 64, on a CPU and on a GPU, and resuming a run needs no generator state. The
random numbers come from numpy's Philox counter generator, keyed with (seed, purpose, epoch or step).
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tinyimnet.config import AugmentConfig, Config
from tinyimnet.data import augment
from tinyimnet.data.dataset import Dataset
from tinyimnet.data.resolution import step_resolutions, work_left
from tinyimnet.errors import UserError

_ORDER, _AUGMENT, _MODEL, _FLIP = range(4)  # purposes, each an independent stream


def generator(*key: int) -> np.random.Generator:
    """A generator that depends only on the integers in `key`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def model_seed(seed: int, step: int, row: int) -> int:
    """Seed for the random numbers of the network (DropPath) in one forward pass.

    `row` is the first row of the micro-batch in the global batch. The seed does not depend on the rank, so
    micro-batches of the same size draw the same numbers on any number of processes.
    """
    return int(np.random.SeedSequence((seed, _MODEL, step, row)).generate_state(1, np.uint64)[0] >> 1)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n_samples: int) -> np.ndarray:
    """Sample order of epoch `epoch`: a permutation of range(n_samples), (n_samples,) int64."""
    return generator(seed, _ORDER, epoch).permutation(n_samples)


def step_samples(seed: int, step: int, n_samples: int, global_batch_size: int) -> np.ndarray:
    """Sample indices of the global batch of step `step`, (global_batch_size,) int64.

    An epoch has n_samples // global_batch_size steps and drops the rest of its permutation, which differs by epoch.
    """
    epoch, place = divmod(step, n_samples // global_batch_size)
    return epoch_order(seed, epoch, n_samples)[place * global_batch_size :][:global_batch_size]


@lru_cache(maxsize=1)
def _flipped_first(seed: int, n_samples: int) -> np.ndarray:
    return generator(seed, _FLIP).integers(0, 2, n_samples)


def flipped(seed: int, epoch: int, samples: np.ndarray, n_samples: int) -> np.ndarray:
    """Flip flags of `samples` in epoch `epoch`, (B,) int64, 1 to flip.

    Alternating flip (Jordan, arXiv 2404.00498): the first epoch flips a random half of the samples, and each sample is
    flipped in every other epoch. Two consecutive epochs show both orientations of every image; independent random flips
    do so for only half of the images.
    """
    return (_flipped_first(seed, n_samples)[samples] + epoch) % 2


def micro_batches(global_batch_size: int, device_batch_size: int, world_size: int, rank: int) -> list[slice]:
    """Rows of the global batch that `rank` trains on, one slice per forward pass.

    Args:
        global_batch_size: images per optimizer step over all processes.
        device_batch_size: maximum number of images per forward pass; 0: no limit.
        world_size: number of processes.
        rank: this process.

    Raises:
        UserError: the global batch does not divide evenly.
    """
    per_rank, rest = divmod(global_batch_size, world_size)
    if rest or not per_rank:
        raise UserError(
            f"train.global_batch_size is {global_batch_size} and must be divisible by the {world_size} processes."
        )
    size = min(per_rank, device_batch_size or per_rank)
    if per_rank % size:
        raise UserError(
            f"train.device_batch_size is {device_batch_size} and must divide the {per_rank} images "
            f"that each of the {world_size} processes trains on per step."
        )
    return [slice(start, start + size) for start in range(rank * per_rank, (rank + 1) * per_rank, size)]


@dataclass(frozen=True)
class Draw:
    """All random choices for a global batch of B images.

    Attributes:
        views: (B, 4) int64: sample index, crop offset down and right in px (negative: up, left), 1 to flip.
        partners: (B,) int64: the row of this batch that is mixed into each row.
        blend: (B,) float32: Mixup weight of each row's own image; 1 without Mixup.
        boxes: (B, 4) int64: CutMix box y0, y1, x0, x1 (ends excluded); empty without CutMix.
        size: width and height of an image in pixels.
    """

    views: np.ndarray
    partners: np.ndarray
    blend: np.ndarray
    boxes: np.ndarray
    size: int

    @property
    def mixed(self) -> bool:
        """Whether any row is mixed with a partner."""
        return bool((self.blend < 1).any() or self.boxes.any())

    def own_share(self) -> np.ndarray:
        """Share of each row's pixels that comes from its own image, (B,) float32; also the weight of its label."""
        y0, y1, x0, x1 = self.boxes.T
        box_share = (y1 - y0) * (x1 - x0) / self.size**2
        return (self.blend * (1 - box_share)).astype(np.float32)

    def packed(self, rows: slice) -> np.ndarray:
        """The choices for b rows in one array, which reaches the device in one copy; the inverse is `unpacked`.

        Returns:
            (5 b,) int32: views (4, b), share of the own image (b,). If any row of the batch is mixed, (14 b,): views of
            the images and of their partners (4, 2 b), share (b,), blend (b,), boxes (4, b). Floats are stored as bits.
        """
        views, share = self.views[rows], self.own_share()[rows].view(np.int32)
        if not self.mixed:
            return np.concatenate([views.T.ravel(), share], dtype=np.int32, casting="same_kind")
        views = np.concatenate([views, self.views[self.partners[rows]]])
        parts = views.T.ravel(), share, self.blend[rows].view(np.int32), self.boxes[rows].T.ravel()
        return np.concatenate(parts, dtype=np.int32, casting="same_kind")


def unpacked(packed: Tensor, *, mixed: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Views, share, blend and boxes from `Draw.packed`; the last two are None if no row of the batch is mixed."""
    size = len(packed) // (14 if mixed else 5)
    if not mixed:
        return packed[: 4 * size].view(4, size), packed[4 * size :].view(torch.float32), None, None
    views, share, blend, boxes = packed.split([8 * size, size, size, 4 * size])
    return views.view(4, 2 * size), share.view(torch.float32), blend.view(torch.float32), boxes.view(4, size)


def draw(
    config: AugmentConfig,
    samples: np.ndarray,
    flip: np.ndarray,
    seed: int,
    step: int,
    *,
    mix: bool,
    size: int,
) -> Draw:
    """Draw the augmentation of the global batch `samples`, images of `size` px, in step `step`.

    `flip` is 1 for each sample to flip; without `mix` no images are mixed.

    Mixup: Zhang et al., arXiv 1710.09412. CutMix: Yun et al., arXiv 1905.04899; the label weight follows the area of
    the box after clipping at the border, not the drawn lambda. Both act per image, not per batch.
    """
    rng, n = generator(seed, _AUGMENT, step), len(samples)
    pad = config.crop_padding
    offsets = rng.integers(-pad, pad, (n, 2), endpoint=True)
    partners = rng.permutation(n)
    kind = rng.random(n) if mix else np.ones(n)
    mixup = kind < config.mixup_probability
    cutmix = ~mixup & (kind < config.mixup_probability + config.cutmix_probability)
    blend = np.where(mixup, rng.beta(config.mixup_alpha, config.mixup_alpha, n), 1).astype(np.float32)
    side = np.sqrt(1 - rng.beta(config.cutmix_alpha, config.cutmix_alpha, n)) * size * cutmix
    centre = rng.uniform(0, size, (n, 2))  # integers below `size` would shift all boxes up and left by half a pixel
    start = np.clip((centre - side[:, None] / 2).round(), 0, size).astype(np.int64)
    end = np.clip((centre + side[:, None] / 2).round(), 0, size).astype(np.int64)
    boxes = np.stack([start[:, 0], end[:, 0], start[:, 1], end[:, 1]], axis=1) * cutmix[:, None]
    views = np.column_stack([samples, offsets, flip * int(config.flip)]).astype(np.int64)
    return Draw(views, partners, blend, boxes, size)


class TrainBatches:
    """The training set on the device, served as augmented batches.

    Args:
        images: (N, S, S, 3) uint8, on the device (on a CPU: the memory map, shared by all processes).
        labels: (N,) int64, on the device.
        n_classes: K.
        mean: channel means in [0, 1].
        std: channel standard deviations in [0, 1].
        config: augmentation settings.
        soft_labels: (N, K) float16 logits of the teachers, on the device; None: hard labels only.
        seed: run.seed.
        epochs: train.epochs.
        global_batch_size: images per step over all processes.

    Raises:
        UserError: fewer samples than one global batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        n_classes: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        config: AugmentConfig,
        soft_labels: Tensor | None = None,
        seed: int,
        epochs: int,
        global_batch_size: int,
    ):
        self.steps_per_epoch = len(images) // global_batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"train.global_batch_size is {global_batch_size}, more than the {len(images)} training images."
            )
        self.images, self.labels, self.n_classes = images, labels, n_classes
        self.image_size = images.shape[1]
        self.soft_labels = soft_labels
        self.normalise = augment.Normalise(mean, std, images.device)
        self.config, self.seed = config, seed
        self.total_steps = epochs * self.steps_per_epoch
        self.resolutions = step_resolutions(config, self.total_steps, self.image_size)
        self.global_batch_size = global_batch_size
        # Draws the next step during this one: a batch of 1,024 takes 0.3 ms, which the device would wait for.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draw")
        self._ahead: tuple[int, Future[Draw]] | None = None

    @classmethod
    def of_run(cls, config: Config, dataset: Dataset, device: torch.device) -> "TrainBatches":
        """Build the batches of a run on `dataset`, with the arrays on `device`."""
        images, labels = (torch.from_numpy(of["train"]).to(device) for of in (dataset.images, dataset.labels))
        soft_labels = None if dataset.soft_labels is None else torch.from_numpy(dataset.soft_labels).to(device)
        return cls(
            images,
            labels,
            len(dataset.classes),
            mean=dataset.mean,
            std=dataset.std,
            config=config.augment,
            soft_labels=soft_labels,
            seed=config.run.seed,
            epochs=config.train.epochs,
            global_batch_size=config.train.global_batch_size,
        )

    def draw(self, step: int) -> Draw:
        """Draw the global batch of `step` and its augmentation, and begin with that of the next step."""
        drawn = self._ahead[1].result() if self._ahead and self._ahead[0] == step else self._draw(step)
        self._ahead = (step + 1, self._thread.submit(self._draw, step + 1))
        return drawn

    def _draw(self, step: int) -> Draw:
        n_samples = len(self.images)
        samples = step_samples(self.seed, step, n_samples, self.global_batch_size)
        flip = flipped(self.seed, step // self.steps_per_epoch, samples, n_samples)
        mix = step < self.config.mix_until * self.total_steps
        return draw(self.config, samples, flip, self.seed, step, mix=mix, size=self.image_size)

    def resolution(self, step: int) -> int:
        """Resolution of `step` in pixels; after the last step, that at which the network is used."""
        return int(self.resolutions[step] if step < self.total_steps else max(self.image_size, self.resolutions[-1]))

    def work_left(self, since: int, step: int) -> float:
        """Work from `step` to the end, as a multiple of the work from `since` to `step`."""
        return work_left(self.resolutions, since, step)

    def load(self, drawn: Draw, rows: slice, step: int) -> tuple[Tensor, augment.Targets]:
        """Images (B, 3, R, R) float32 in channels_last and their targets, for `rows` of a draw."""
        packed = to_device(drawn.packed(rows), self.images.device)
        return self.augmented(packed, self.resolution(step), mixed=drawn.mixed)

    def augmented(self, packed: Tensor, resolution: int, *, mixed: bool) -> tuple[Tensor, augment.Targets]:
        """What `load` returns, of a packed draw on the device; `mixed` says whether any row of the batch is mixed."""
        views, share, blend, boxes = unpacked(packed, mixed=mixed)
        size = len(share)
        cropped = augment.resize(augment.crop_flip(self.images, *views), resolution)
        images = self.normalise(cropped)
        if blend is not None and boxes is not None:
            own, partners = images.split(size)
            images = augment.mix(own, partners, augment.weight_map(blend, boxes, self.image_size, resolution))
        return images, self._targets(views[0], share)

    def _targets(self, samples: Tensor, share: Tensor) -> augment.Targets:
        own, partners = slice(len(share)), slice(-len(share), None)  # the same rows if no row of the batch is mixed
        labels, partner_labels = (self.labels.index_select(0, samples[rows]) for rows in (own, partners))
        smoothing = self.config.label_smoothing
        targets = augment.soft_targets(labels, partner_labels, share, self.n_classes, smoothing)
        if self.soft_labels is None:
            return augment.Targets(targets, None)
        soft = augment.softened(self.soft_labels.index_select(0, samples), self.config).softmax(1)
        return augment.Targets(targets, augment.mix(soft[own], soft[partners], share[:, None]))

    def plain(self, count: int) -> Tensor:
        """About `count` normalised images without augmentation, evenly spaced in the training set.

        Their resolution is halfway between that of the first step and the full one.
        """
        images = self.images[:: max(1, len(self.images) // count)]
        return self.normalise(augment.resize(images, (self.resolution(0) + self.image_size) // 2))


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy a small host array to the device; the copy to a GPU is asynchronous, from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

"""Augmentation of whole batches on the device: crop, flip, normalise, Mixup, CutMix, soft targets.

Nothing here draws random numbers; `batches.draw` makes every random choice.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyimnet.config import AugmentConfig
from tinyimnet.data.dataset import SIZES


class Targets(NamedTuple):
    """What the network should predict for B images; each row is a distribution over the K classes.

    Attributes:
        labels: (B, K) float32, from the labels.
        soft_labels: (B, K) float32, from the softened logits of the teachers; None without data.soft_labels.
    """

    labels: Tensor
    soft_labels: Tensor | None


def crop_flip(images: Tensor, index: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
    """Gather samples with a shifted crop (reflection padding) and an optional horizontal flip.

    The padded images are never built, because the gather uses reflected coordinates. Gathering whole pixel rows and
    then the pixels of each row takes 3.5 ms for 256 images on 2 cores, against 11.9 ms for a two-dimensional gather.

    Args:
        images: (N, S, S, C) uint8.
        index: (B,) int32 sample indices.
        down, right: (B,) int32 crop offsets in px.
        flip: (B,) int32, 1 to flip horizontally.

    Returns:
        (B, S, S, C) uint8.
    """
    size, channels = images.shape[2], images.shape[3]
    # 32-bit indices, because memory traffic dominates: a batch of 256 has a million pixels.
    along = torch.arange(size, dtype=torch.int32, device=images.device)
    ys = _reflect(along + down[:, None], size)
    xs = _reflect(torch.where(flip[:, None] == 1, size - 1 - along, along) + right[:, None], size)
    rows = images.view(-1, size * channels).index_select(0, (index[:, None] * size + ys).flatten())
    row_starts = size * torch.arange(len(index) * size, dtype=torch.int32, device=images.device)
    pixels = rows.view(-1, channels).index_select(0, (row_starts.view(-1, size, 1) + xs[:, None, :]).flatten())
    return pixels.view(len(index), size, size, channels)


def _reflect(position: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - position.abs()).abs()


def resize(images: Tensor, resolution: int) -> Tensor:
    """Resize (B, S, S, C) uint8 to (B, R, R, C) uint8 with an anti-aliasing bicubic filter; a no-op at R = S.

    On a CPU this runs in integers: 4 ms for 256 images from 64 to 48 px on 2 cores. On a GPU torch requires floats.
    """
    if images.shape[1] == resolution:
        return images
    pixels = images.permute(0, 3, 1, 2)
    if images.device.type == "cpu":
        resized = _bicubic(pixels, resolution)
    else:
        resized = _bicubic(pixels.float(), resolution).round().clamp(0, 255).byte()
    return resized.permute(0, 2, 3, 1).contiguous()


def _bicubic(images: Tensor, resolution: int) -> Tensor:
    # Bicubic keeps edges as sharp as at 64 px: after one epoch at 32 to 56 px, top-1 at 64 px is 21.7 %, against 12.0 %
    # with the bilinear filter (docs/experiments.md, trials 8 and 10).
    return F.interpolate(images, size=(resolution, resolution), mode="bicubic", antialias=True)


class Normalise:
    """Normalise (B, S, S, 3) uint8 to (B, 3, S, S) float32 with zero mean and unit variance, in channels_last.

    The statistics are repeated over a pixel row to make the inner loop long; an inner loop of 3 is ten times slower.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device):
        largest = 2 * SIZES[-1]  # augment.end_resolution doubles the size of the images at most
        self.mean = (torch.tensor(mean) * 255).repeat(largest).to(device)
        self.scale = (1 / (torch.tensor(std) * 255)).repeat(largest).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        batch, height, width, channels = images.shape
        flat = images.reshape(batch * height, width * channels).float()
        flat.sub_(self.mean[: width * channels]).mul_(self.scale[: width * channels])
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def inverse(self, images: Tensor) -> Tensor:
        """Pixels (B, S, S, 3) float32 from 0 to 255 of normalised images."""
        return images.permute(0, 2, 3, 1) / self.scale[:3] + self.mean[:3]


def weight_map(blend: Tensor, boxes: Tensor, size: int, resolution: int) -> Tensor:
    """Weight of each row's own image at each pixel, (B, 1, R, R) float32.

    Args:
        blend: (B,) float32 weight outside the box (Mixup).
        boxes: (4, B) int32 y0, y1, x0, x1 in a full image; the weight inside is 0 (CutMix).
        size: width and height of a full image in pixels.
        resolution: R in pixels; unless it is `size`, the box borders are resized with the same filter as the images.
    """
    along = torch.arange(size, dtype=torch.int32, device=boxes.device)
    y0, y1, x0, x1 = boxes[:, :, None]
    in_rows, in_columns = (along >= y0) & (along < y1), (along >= x0) & (along < x1)
    in_box = in_rows[:, :, None] & in_columns[:, None, :]
    weight = torch.where(in_box, 0.0, blend[:, None, None])[:, None]
    return weight if resolution == size else _bicubic(weight, resolution).clamp(0, 1)  # bicubic overshoots


def mix(images: Tensor, partners: Tensor, weight: Tensor) -> Tensor:
    """Return weight * images + (1 - weight) * partners, for images (B, C, S, S) or soft labels (B, K)."""
    return torch.lerp(partners, images, weight)


def soft_targets(labels: Tensor, partner_labels: Tensor, share: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """Label-smoothed targets that weight two labels by their share of the pixels; each row sums to 1.

    Args:
        labels, partner_labels: (B,) int64.
        share: (B,) float32 share of each row's own image.
        n_classes: K.
        smoothing: label smoothing in [0, 1) (Szegedy et al., arXiv 1512.00567).

    Returns:
        (B, K) float32.
    """
    targets = torch.full((len(labels), n_classes), smoothing / n_classes, device=labels.device)
    # One call per label: if both labels are the same class, a GPU may add the values of a single call in any order.
    for weight, label in ((share, labels), (1 - share, partner_labels)):
        targets.scatter_add_(1, label[:, None], weight[:, None] * (1 - smoothing))
    return targets


def softened(logits: Tensor, config: AugmentConfig) -> Tensor:
    """Logits (B, K) of a teacher or of the network, standardised and divided by the temperature, in float32."""
    logits = logits.float()
    if config.soft_label_standardise:
        # Without weights, layer norm is the Z-score of Sun et al. (arXiv 2403.01427), in one kernel.
        logits = F.layer_norm(logits, logits.shape[1:], eps=1e-14)  # 1e-7 in the standard deviation
    return logits / config.soft_label_temperature

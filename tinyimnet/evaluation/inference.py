"""Batched log-probabilities and sums of loss and hits, for the training loop and the command line."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyimnet.data.augment import Normalise, resize

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast context of `train.precision`; a no-op for fp32."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@torch.no_grad()
def batched_log_probabilities(
    model: nn.Module,
    images: Tensor,
    rows: range,
    normalise: Normalise,
    *,
    precision: str,
    flip: bool = False,
    resolution: int | None = None,
    batch_size: int = 500,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of `rows` and the log-probabilities (b, K) float32 of their images, one batch at a time.

    Args:
        model: a bare network; this call puts it into eval mode.
        images: (N, S, S, 3) uint8, on any device; batches are moved to the network's device.
        rows: consecutive rows of `images`.
        normalise: normalisation of the training set, on the network's device.
        precision: train.precision.
        flip: average the probabilities with those of the mirrored image.
        resolution: input resolution in pixels; None: that of the images.
        batch_size: images per forward pass.
    """
    model.eval()
    device = next(model.parameters()).device
    for start in range(rows.start, rows.stop, batch_size):
        batch = slice(start, min(start + batch_size, rows.stop))
        x = normalise(resize(images[batch].to(device), resolution or images.shape[1]))
        with autocast(device, precision):
            views = [model(x), model(x.flip(3))] if flip else [model(x)]
        log_probabilities = torch.stack([F.log_softmax(view.float(), dim=1) for view in views])
        yield batch, log_probabilities.logsumexp(0) - math.log(len(views))


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    rows: range,
    normalise: Normalise,
    *,
    after_batch: Callable[[], None] = lambda: None,
    **options: Any,
) -> Tensor:
    """Sums over images[rows]: loss, top-1 hits, top-5 hits, images; (4,) float64 on the network's device.

    Processes that share a split add up their sums, so each image counts once and none is padded. `after_batch` is
    called after each batch; `options` are those of batched_log_probabilities.
    """
    device = next(model.parameters()).device
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for batch, log_probabilities in batched_log_probabilities(model, images, rows, normalise, **options):
        target = labels[batch].to(device)
        hits = log_probabilities.topk(min(5, log_probabilities.shape[1]), dim=1).indices == target[:, None]
        loss = F.nll_loss(log_probabilities.double(), target, reduction="sum")
        sums += torch.stack([loss, hits[:, 0].sum(), hits.sum(), loss.new_full((), len(target))])
        after_batch()
    return sums


def rows_of_rank(n_rows: int, rank: int, world_size: int) -> range:
    """Consecutive rows of a split that a rank evaluates; together the ranks cover each row once."""
    return range(n_rows * rank // world_size, n_rows * (rank + 1) // world_size)

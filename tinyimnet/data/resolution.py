"""The resolution of each step, and its effect on the remaining time of a run.

Unlike augment.py this module does not import torch, because `tinyimnet status` runs without it.
"""

import numpy as np

from tinyimnet.config import AugmentConfig, Config
from tinyimnet.data.dataset import IMAGE_SIZE, Dataset


def step_resolutions(config: AugmentConfig, total_steps: int, size: int = IMAGE_SIZE) -> np.ndarray:
    """Training resolution of each step in pixels, (total_steps,) int64.

    It grows by eighths of `size` up to `size`. If config.end_resolution is above 64, the last steps are above `size`.
    The schedule is that of images of 64 px, in proportion: a start at 32 px is one at 48 px for images of 96 px. So a
    recipe suits images of any size, with as many resolutions to compile.
    """
    progress = np.arange(total_steps) / max(1, total_steps)
    start, full_from = config.start_resolution, config.full_resolution_from
    grown = np.where(progress < full_from, progress / (full_from or 1), 1)
    of_64_px = ((start + (IMAGE_SIZE - start) * grown) // 8 * 8).astype(np.int64)
    if config.end_resolution > IMAGE_SIZE:
        of_64_px[progress >= config.end_resolution_from] = config.end_resolution
    return of_64_px * size // IMAGE_SIZE


def run_resolutions(config: Config, dataset: Dataset) -> np.ndarray:
    """What `step_resolutions` returns for a run on `dataset`, with a step at least."""
    steps_per_epoch = len(dataset.labels["train"]) // config.train.global_batch_size
    return step_resolutions(config.augment, max(1, config.train.epochs * steps_per_epoch), dataset.image_size)


def work_left(resolutions: np.ndarray, since: int, step: int) -> float:
    """Work from `step` to the end, as a multiple of the work from `since` to `step`; requires `step` > `since`.

    The cost of a step is taken to be its number of pixels, which predicts a factor of 4 from 32 to 64 px; on 2 cores
    the factor is 3.4. If all steps counted equally, the first estimates of a run that starts at 32 px would be below
    half of the actual time.
    """
    pixels = resolutions**2
    return float(pixels[step:].sum() / pixels[since:step].sum())

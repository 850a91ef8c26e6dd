"""Progressive resizing: the resolution of each step, and its effect on the remaining time of a run.

Unlike augment.py this module does not import torch, because `tinyimnet status` runs without it.
"""

import numpy as np

from tinyimnet.data.dataset import IMAGE_SIZE


def step_resolutions(
    start_resolution: int, full_resolution_from: float, total_steps: int, size: int = IMAGE_SIZE
) -> np.ndarray:
    """Training resolution of each step in pixels, (total_steps,) int64; it grows by eighths of `size` up to `size`.

    The schedule is that of images of 64 px, in proportion: a start at 32 px is one at 48 px for images of 96 px. So a
    recipe suits images of any size, with as many resolutions to compile.
    """
    progress = np.arange(total_steps) / max(1, total_steps)
    grown = np.where(progress < full_resolution_from, progress / (full_resolution_from or 1), 1)
    of_64_px = ((start_resolution + (IMAGE_SIZE - start_resolution) * grown) // 8 * 8).astype(np.int64)
    return of_64_px * size // IMAGE_SIZE


def work_left(resolutions: np.ndarray, since: int, step: int) -> float:
    """Work from `step` to the end, as a multiple of the work from `since` to `step`; requires `step` > `since`.

    The cost of a step is taken to be its number of pixels, which predicts a factor of 4 from 32 to 64 px; on 2 cores
    the factor is 3.4. If all steps counted equally, the first estimates of a run that starts at 32 px would be below
    half of the actual time.
    """
    pixels = resolutions**2
    return float(pixels[step:].sum() / pixels[since:step].sum())

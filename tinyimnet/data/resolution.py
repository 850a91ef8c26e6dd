"""Progressive resizing: the resolution of each step, and what it means for the time that a run still takes.

No torch here, unlike in augment.py: launch.status starts without it.
"""

import numpy as np

from tinyimnet.data.dataset import IMAGE_SIZE


def step_resolutions(start_resolution: int, full_resolution_from: float, total_steps: int) -> np.ndarray:
    """Training resolution of each step in pixels, (total_steps,) int64: in steps of 8 px up to 64."""
    progress = np.arange(total_steps) / max(1, total_steps)
    grown = np.where(progress < full_resolution_from, progress / (full_resolution_from or 1), 1)
    return ((start_resolution + (IMAGE_SIZE - start_resolution) * grown) // 8 * 8).astype(np.int64)


def work_left(resolutions: np.ndarray, since: int, step: int) -> float:
    """Work from `step` to the end as a multiple of the work from step `since` to there, `step` > `since`.

    A step costs its pixels: on 2 cores 3.4 times as much at 64 px as at 32, where the pixels say 4. Were all steps
    taken as equal, the first ones from 32 px on would promise less than half of the time.
    """
    pixels = resolutions**2
    return float(pixels[step:].sum() / pixels[since:step].sum())

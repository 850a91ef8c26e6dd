"""Exponential moving average of weights and BatchNorm statistics.

torch's AveragedModel copies its counter to the device in every update, which waits for the device; here the decay is
a number that the host computes from the step.
"""

from copy import deepcopy

import torch
from torch import nn


class Ema:
    """`module` is the average: a copy of the bare (not wrapped) model."""

    def __init__(self, model: nn.Module):
        self.module = deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """average = decay * average + (1 - decay) * model, over parameters and floating-point buffers."""
        torch._foreach_lerp_(averaged(self.module), averaged(model), 1 - decay)


def averaged(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and BatchNorm statistics, without the integer counter num_batches_tracked, which nothing reads."""
    return [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]

"""Exponential moving average (EMA) of weights and BatchNorm statistics.

torch's AveragedModel copies its counter to the device on every update, which waits for the device. Here the host
computes the decay from the step.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from tinyimnet.model.batchnorm import float_buffers


class Ema:
    """Moving average of a bare (unwrapped) model; `module` is the averaged copy."""

    def __init__(self, model: nn.Module):
        self.module = deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Set average = decay * average + (1 - decay) * model, over parameters and floating-point buffers."""
        torch._foreach_lerp_(averaged_tensors(self.module), averaged_tensors(model), 1 - decay)


def averaged_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and BatchNorm statistics, without num_batches_tracked, an integer that nothing reads."""
    return [*model.parameters(), *float_buffers(model)]


@torch.no_grad()
def distance(model: nn.Module, average: nn.Module) -> Tensor:
    """Relative distance |model - average| / |model| over all parameters, shape (), on their device."""
    weights, averages = tuple(model.parameters()), tuple(average.parameters())
    apart = torch._foreach_norm(torch._foreach_sub(weights, averages))
    return torch.stack(apart).norm() / torch.stack(torch._foreach_norm(weights)).norm()

"""BatchNorm without a counter, and its running statistics, which each rank keeps for itself, as one tensor."""

from typing import Any

import torch
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d without num_batches_tracked, which nothing reads and each layer would increment in every step.

    Weights that an earlier version wrote with that counter can be loaded.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        # Without its version torch takes a file for one from before the counter, and adds it.
        super()._load_from_state_dict(state_dict, prefix, {"version": self._version}, *args)


def float_buffers(model: nn.Module) -> list[Tensor]:
    """BatchNorm's running means and variances."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def flatten_statistics(model: nn.Module) -> Tensor:
    """Move the running means and variances into one tensor (n,), in the order of `float_buffers`, and return it.

    The buffers become views of it, so that one kernel copies or averages them all. Call it when the model is on its
    device; `load_state_dict` keeps the views.
    """
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    flat = torch.cat([buffer for _, _, buffer in buffers])
    views = flat.split([buffer.numel() for _, _, buffer in buffers])
    for (module, name, _), view in zip(buffers, views, strict=True):
        setattr(module, name, view)
    return flat


def unflatten(flat: Tensor, tensors: list[Tensor]) -> None:
    """Copy the pieces of the concatenation `flat` back into `tensors`."""
    for piece, tensor in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True):
        tensor.copy_(piece.view_as(tensor))

"""BatchNorm's running statistics, which each rank keeps for itself: list them, or restore them from a flat tensor."""

from torch import Tensor, nn


def float_buffers(model: nn.Module) -> list[Tensor]:
    """BatchNorm's running means and variances."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def unflatten(flat: Tensor, tensors: list[Tensor]) -> None:
    """Copy the pieces of the concatenation `flat` back into `tensors`."""
    for piece, tensor in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True):
        tensor.copy_(piece.view_as(tensor))

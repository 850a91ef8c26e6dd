"""Muon for convolution filters and SGD for the rest, in one optimizer that can skip a step on the device.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
semi-orthogonal matrix, so that a step moves all directions of a filter bank equally. `torch.optim.Muon` accepts only
matrices, processes them one at a time and does not support `found_inf`. Here filters of the same shape are
orthogonalised as one batch, without a copy, because they are neighbours in memory.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

# Quintic coefficients from the page above. Three steps are enough for convolutions (airbench94_muon in
# KellerJordan/cifar10-airbench).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 3


class Muon(torch.optim.Optimizer):
    """Nesterov momentum in all groups; groups with `orthogonal` also orthogonalise the update of each filter bank.

    Weight decay is decoupled, as in AdamW: a step scales the weights by 1 - lr * weight_decay. A step with `found_inf`
    set to 1 is a no-op, and the host never reads the flag.

    Args:
        groups: parameter groups, each with `orthogonal`, `weight_decay` and an `lr` that may change between steps.
        momentum: momentum of all groups.
    """

    # Makes GradScaler leave the skipping to step(), as it does for fused kernels.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float):
        super().__init__(groups, {"momentum": momentum})
        self._flat = [_Flat(group["params"]) for group in self.param_groups]
        self._point_to_flat()

    def _point_to_flat(self) -> None:
        for flat in self._flat:
            for parameter, view in zip(flat.parameters, flat.momenta, strict=True):
                self.state[parameter]["momentum_buffer"] = view

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the momentum."""
        super().load_state_dict(state_dict)
        for flat in self._flat:
            torch._foreach_copy_(flat.momenta, [self.state[p]["momentum_buffer"] for p in flat.parameters])
        self._point_to_flat()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one step; every parameter must have a gradient, already unscaled."""
        bad = self.found_inf
        if bad is None:
            bad = torch.zeros((), device=self._flat[0].momentum.device)
        keep = 1 - bad
        for group, flat in zip(self.param_groups, self._flat, strict=True):
            torch._foreach_copy_(flat.updates, [p.grad for p in flat.parameters if p.grad is not None])
            update = flat.update.masked_fill_(bad != 0, 0)
            flat.momentum.mul_(bad + keep * group["momentum"]).add_(update)  # times 1 if the step is skipped
            update.add_(flat.momentum, alpha=group["momentum"])
            if group["orthogonal"]:
                orthogonalise_(flat.banks)
            if group["weight_decay"]:
                torch._foreach_mul_(flat.parameters, 1 - keep * (group["lr"] * group["weight_decay"]))
            update.mul_(keep * group["lr"])
            torch._foreach_sub_(flat.parameters, flat.updates)


class _Flat:
    """Momentum and update of a parameter group, each as one tensor, so that few kernels process them.

    Attributes:
        parameters: the parameters, those of the same shape next to each other.
        momentum, update: (n,).
        momenta, updates: their pieces, shaped like the parameters and in the same memory layout.
        banks: the pieces of `update` of each shape with several dimensions, (count, rows, columns).
    """

    def __init__(self, parameters: list[Tensor]):
        self.parameters = sorted(parameters, key=lambda parameter: tuple(parameter.shape))
        sizes = [parameter.numel() for parameter in parameters]
        self.momentum, self.update = (torch.zeros(sum(sizes), device=parameters[0].device) for _ in range(2))
        self.momenta, self.updates = self._pieces(self.momentum), self._pieces(self.update)
        self.banks, start = [], 0
        for shape, of_shape in groupby(parameter.shape for parameter in self.parameters):
            count, length = len(list(of_shape)), shape.numel()
            if len(shape) > 1:
                bank = self.update[start : start + count * length]
                self.banks.append(bank.view(count, shape[0], length // shape[0]))
            start += count * length

    def _pieces(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        pairs = zip(pieces, self.parameters, strict=True)
        return [piece.as_strided(like.shape, like.stride()) for piece, like in pairs]


def orthogonalise_(banks: Iterable[Tensor]) -> None:
    """Orthogonalise filters (count, O, H*W*I) in place, each a matrix with a row for every output channel.

    The results are nearly semi-orthogonal and scaled by sqrt(max(1, rows / columns)), so that one learning rate suits
    wide and tall matrices.
    """
    for bank in banks:
        torch.mul(newton_schulz(bank), max(1.0, bank.shape[1] / bank.shape[2]) ** 0.5, out=bank)


def newton_schulz(matrices: Tensor) -> Tensor:
    """Push the singular values of (N, R, C) matrices towards 1 by a quintic Newton-Schulz iteration.

    Singular values above 2 % of the matrix norm end between about 0.7 and 1.2; three steps multiply smaller ones by 41.
    One step is x <- a x + b (x x') x + c (x x')^2 x, computed as a x plus the product of x with a polynomial of the
    small square matrix x x'.
    """
    # The iteration tolerates bf16 rounding, and bf16 runs on tensor cores. CPUs without bf16 emulate it slowly.
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)

"""Muon for convolution filters and SGD for the rest, in one optimizer that can skip a step on the device.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
semi-orthogonal matrix, so that a step moves all directions of a filter bank equally. `torch.optim.Muon` accepts only
matrices, processes them one at a time and does not support `found_inf`. Here filters of similar shapes are
orthogonalised as one batch.
"""

from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

# Quintic coefficients from the page above. Three steps are enough for convolutions (airbench94_muon in
# KellerJordan/cifar10-airbench).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 3
MOST_PADDING = 0.3  # share of arithmetic that padding may add. A step of tiny1m has 5 batches, not 14


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
                for batch in flat.batches:
                    batch.orthogonalise_()
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
        batches: the pieces of `update` with several dimensions.
    """

    def __init__(self, parameters: list[Tensor]):
        self.parameters = sorted(parameters, key=lambda parameter: tuple(parameter.shape))
        sizes = [parameter.numel() for parameter in parameters]
        self.momentum, self.update = (torch.zeros(sum(sizes), device=parameters[0].device) for _ in range(2))
        self.momenta, self.updates = self._pieces(self.momentum), self._pieces(self.update)
        banks, start = [], 0
        for shape, of_shape in groupby(parameter.shape for parameter in self.parameters):
            count, length = len(list(of_shape)), shape.numel()
            if len(shape) > 1:
                bank = self.update[start : start + count * length]
                banks.append(bank.view(count, shape[0], length // shape[0]))
            start += count * length
        self.batches = batches_of(banks)

    def _pieces(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        pairs = zip(pieces, self.parameters, strict=True)
        return [piece.as_strided(like.shape, like.stride()) for piece, like in pairs]


class Batch:
    """Banks of filters as one batch of matrices, padded with zeros, which change no product.

    Args:
        banks: filters of one shape each, (count, O, H*W*I): matrices with a row for every output channel.
    """

    def __init__(self, banks: list[Tensor]):
        self.wide = [_wide(bank) for bank in banks]
        self.scales = [max(1.0, bank.shape[1] / bank.shape[2]) ** 0.5 for bank in banks]
        # The iteration tolerates bf16 rounding, and bf16 runs on tensor cores. CPUs without bf16 emulate it slowly.
        dtype = torch.bfloat16 if banks[0].is_cuda else banks[0].dtype
        self.padded = torch.zeros(_padded(banks), dtype=dtype, device=banks[0].device)

    def orthogonalise_(self) -> None:
        """Orthogonalise the filters in place.

        The results are nearly semi-orthogonal and scaled by sqrt(max(1, rows / columns)), so that one learning rate
        suits wide and tall matrices.
        """
        for piece, bank in zip(self._pieces(self.padded), self.wide, strict=True):
            piece.copy_(bank)
        results = self._pieces(newton_schulz(self.padded))
        for result, scale, bank in zip(results, self.scales, self.wide, strict=True):
            torch.mul(result, scale, out=bank)

    def _pieces(self, padded: Tensor) -> list[Tensor]:
        parts = padded.split([len(bank) for bank in self.wide])
        return [part[:, : bank.shape[1], : bank.shape[2]] for part, bank in zip(parts, self.wide, strict=True)]


def batches_of(banks: list[Tensor]) -> list[Batch]:
    """Join banks (count, O, H*W*I) into few batches; padding adds at most MOST_PADDING to their arithmetic."""
    groups = [[bank] for bank in sorted(banks, key=lambda bank: bank[0].numel())]
    room = MOST_PADDING * sum(map(_arithmetic, groups))
    while len(groups) > 1:
        added = [_arithmetic(one + two) - _arithmetic(one) - _arithmetic(two) for one, two in pairwise(groups)]
        least = min(range(len(added)), key=added.__getitem__)
        if added[least] > room:
            break
        room -= added[least]
        groups[least : least + 2] = [groups[least] + groups[least + 1]]
    return [Batch(group) for group in groups]


def _wide(bank: Tensor) -> Tensor:
    return bank.mT if bank.shape[1] > bank.shape[2] else bank


def _padded(banks: list[Tensor]) -> tuple[int, int, int]:
    """Shape of the batch that holds the banks: matrices, rows, columns."""
    shapes = [_wide(bank).shape for bank in banks]
    return sum(shape[0] for shape in shapes), max(shape[1] for shape in shapes), max(shape[2] for shape in shapes)


def _arithmetic(banks: list[Tensor]) -> int:
    """Multiply-accumulates of the product of each padded matrix with its transpose."""
    count, rows, columns = _padded(banks)
    return count * rows**2 * columns


def newton_schulz(matrices: Tensor) -> Tensor:
    """Push the singular values of (N, R, C) matrices, R <= C, towards 1 by a quintic Newton-Schulz iteration.

    Singular values above 2 % of the matrix norm end between about 0.7 and 1.2; three steps multiply smaller ones by 41.
    One step is x <- a x + b (x x') x + c (x x')^2 x, computed as a x plus the product of x with a polynomial of the
    small square matrix x x'.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x

"""Muon for convolution filters and SGD for the rest, in one optimizer that can skip a step on the device.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
semi-orthogonal matrix, so that a step moves all directions of a filter bank equally. `torch.optim.Muon` accepts only
matrices, processes them one at a time and does not support `found_inf`. Here filters of the same shape are
orthogonalised as one batch.
"""

from collections import defaultdict
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
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one step; every parameter must have a gradient, already unscaled."""
        for group in self.param_groups:
            parameters = group["params"]
            device = parameters[0].device
            bad = torch.zeros((), device=device) if self.found_inf is None else self.found_inf
            good, keep, nothing = bad == 0, 1 - bad, torch.zeros((), device=device)
            gradients = [torch.where(good, p.grad, nothing) for p in parameters]
            momenta = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(momenta, bad + keep * group["momentum"])  # times 1 if the step is skipped
            torch._foreach_add_(momenta, gradients)
            updates = list(torch._foreach_add(gradients, momenta, alpha=group["momentum"]))
            if group["orthogonal"]:
                updates = orthogonalised(updates)
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - keep * (group["lr"] * group["weight_decay"]))
            torch._foreach_mul_(updates, keep * group["lr"])
            torch._foreach_sub_(parameters, updates)


def orthogonalised(updates: list[Tensor]) -> list[Tensor]:
    """Orthogonalise filter banks (O, I, H, W), each viewed as a matrix of O rows and H*W*I columns.

    The results are nearly semi-orthogonal and scaled by sqrt(max(1, rows / columns)), so that one learning rate suits
    wide and tall matrices.
    """
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for i, update in enumerate(updates):
        by_shape[update.shape].append(i)
    found: list[Tensor] = [torch.empty(0)] * len(updates)
    for shape, places in by_shape.items():
        # Filters are channels_last, so in the order H, W, I the only copy is the stack.
        stack = torch.stack([updates[i].permute(0, 2, 3, 1).flatten(1) for i in places])
        scale = max(1.0, stack.shape[1] / stack.shape[2]) ** 0.5
        for i, matrix in zip(places, newton_schulz(stack).mul_(scale).unbind(), strict=True):
            found[i] = matrix.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    return found


def newton_schulz(matrices: Tensor) -> Tensor:
    """Push the singular values of (N, R, C) matrices towards 1 by a quintic Newton-Schulz iteration.

    Singular values above 2 % of the matrix norm end between about 0.7 and 1.2; three steps multiply smaller ones by 41.
    One step is x <- a x + b (x x') x + c (x x')^2 x, computed as the product of x with a polynomial of the small square
    matrix x x'.
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
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        x = polynomial @ x
    return (x.mT if tall else x).to(matrices.dtype)

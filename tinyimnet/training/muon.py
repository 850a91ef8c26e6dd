"""Muon for filters, SGD for the rest, in one optimizer that can skip a step on the device.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
semi-orthogonal one, so that a step moves all directions of a filter bank alike. `torch.optim.Muon` takes matrices
only, one after the other, and knows no `found_inf`; here filters of one shape are orthogonalised as one batch.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

# Quintic of the page above: three steps are enough for convolutions (airbench94_muon of KellerJordan/cifar10-airbench).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 3


class Muon(torch.optim.Optimizer):
    """Nesterov momentum in all groups; in groups with `orthogonal` the update of a filter bank is orthogonalised.

    Weight decay is decoupled as in AdamW: lr * weight_decay off the weights. A step with `found_inf` set to 1 changes
    nothing, without the host ever reading it.

    Args:
        groups: parameter groups, each with `orthogonal`, `weight_decay` and an `lr` that may change between steps.
        momentum: of all groups.
    """

    # A GradScaler leaves the skipping to this step, as it does with fused kernels.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float):
        super().__init__(groups, {"momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients as they are; each parameter has one."""
        for group in self.param_groups:
            parameters = group["params"]
            device = parameters[0].device
            bad = torch.zeros((), device=device) if self.found_inf is None else self.found_inf
            good, keep, nothing = bad == 0, 1 - bad, torch.zeros((), device=device)
            gradients = [torch.where(good, p.grad, nothing) for p in parameters]
            momenta = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(momenta, bad + keep * group["momentum"])  # times 1 where the step is skipped
            torch._foreach_add_(momenta, gradients)
            updates = list(torch._foreach_add(gradients, momenta, alpha=group["momentum"]))
            if group["orthogonal"]:
                updates = orthogonalised(updates)
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - keep * (group["lr"] * group["weight_decay"]))
            torch._foreach_mul_(updates, keep * group["lr"])
            torch._foreach_sub_(parameters, updates)


def orthogonalised(updates: list[Tensor]) -> list[Tensor]:
    """The nearly semi-orthogonal matrix for each filter bank (O, I, H, W), seen as O rows of H*W*I columns.

    Scaled by sqrt(max(1, rows / columns)), so that one learning rate suits wide and tall ones.
    """
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for i, update in enumerate(updates):
        by_shape[update.shape].append(i)
    found: list[Tensor] = [torch.empty(0)] * len(updates)
    for shape, places in by_shape.items():
        # Filters lie in channels_last: in the order H, W, I nothing is copied but into the stack.
        stack = torch.stack([updates[i].permute(0, 2, 3, 1).flatten(1) for i in places])
        scale = max(1.0, stack.shape[1] / stack.shape[2]) ** 0.5
        for i, matrix in zip(places, newton_schulz(stack).mul_(scale).unbind(), strict=True):
            found[i] = matrix.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
    return found


def newton_schulz(matrices: Tensor) -> Tensor:
    """Singular values of (N, R, C) matrices pushed towards 1 by a quintic iteration.

    Those above 2 % of the matrix's norm end between about 0.7 and 1.2; three steps lift smaller ones 41 times.

    x <- a x + b (x x') x + c (x x')^2 x, as one product of x with a polynomial of the small square x x'.
    """
    # The iteration forgives bf16's rounding, and tensor cores want it; CPUs without bf16 imitate it slowly.
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

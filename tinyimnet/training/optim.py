"""Optimizer, learning-rate schedule and EMA decay schedule; both schedules are pure functions of the global step."""

import math

import torch
from torch import Tensor, nn

from tinyimnet.config import OptimConfig
from tinyimnet.training.muon import Muon


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Split the parameters by weight decay and, for Muon, by update rule.

    Parameters with more than one dimension decay; norms and biases do not. Muon orthogonalises the convolution filters
    after the stem. Each group has a `peak_lr`; a step's learning rate is `peak_lr` times `lr_scale`.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    filters = _dense_filters(model) if config.name == "muon" else set()
    rest_lr = config.sgd_lr if config.name == "muon" else config.lr
    muon = [p for name, p in named if name in filters]
    decayed = [p for name, p in named if p.ndim > 1 and name not in filters]
    spared = [p for _, p in named if p.ndim <= 1]

    def group(parameters: list[nn.Parameter], lr: float, decay: float, orthogonal: bool) -> dict:
        return {
            "params": parameters,
            "lr": lr,
            "peak_lr": lr,
            "weight_decay": decay,
            "orthogonal": orthogonal,
        }

    groups = [
        group(muon, config.lr, config.weight_decay, True),
        group(decayed, rest_lr, config.weight_decay, False),
        group(spared, rest_lr, 0.0, False),
    ]
    return [group for group in groups if group["params"]]


def _dense_filters(model: nn.Module) -> set[str]:
    """Names of the weights that Muon orthogonalises: convolutions that mix all channels, except the stem's."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and not name.startswith("stem")
    }


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum, AdamW, or Muon with that SGD for the parameters it does not orthogonalise.

    Each can skip a step on the device (`found_inf`) without a host sync. SGD and AdamW use one fused kernel.
    """
    groups = parameter_groups(model, config)
    if config.name == "muon":
        return Muon(groups, momentum=config.momentum)
    if config.name == "sgd":
        sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=True)
        # torch allocates these buffers uninitialised in the first step; if that step is skipped, they stay garbage.
        for parameter in (p for group in groups for p in group["params"]):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    on_gpu = next(model.parameters()).is_cuda  # where a graph may repeat its step
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True, capturable=on_gpu)


def clip_(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Clip gradients to max_norm (0: no clipping) and return their norm before, shape ().

    As torch.nn.utils.clip_grad_norm_, but the norm is computed on copies: CUDA's kernel sums in a different order if
    memory is not aligned to 16 bytes, and the position of a gradient in DDP's bucket changes after the first backward
    pass of an attempt.
    """
    norm = torch.stack(torch._foreach_norm(torch._foreach_mul(gradients, 1.0))).norm()
    if max_norm:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def lr_scale(step: int, config: OptimConfig, total_steps: int, steps_per_epoch: int) -> float:
    """Learning-rate factor at step 0 <= step < total_steps: linear warm-up, then cosine or linear decay to zero."""
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2


def ema_decay_at(step: int, decay: float) -> float:
    """EMA decay after step `step`: low at first, so that the initial weights are forgotten quickly."""
    return min(decay, (1 + step) / (10 + step))

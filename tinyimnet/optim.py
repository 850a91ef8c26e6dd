"""Optimizer, learning rate and EMA decay; both schedules are pure functions of the global step."""

import math

import torch
from torch import nn

from tinyimnet.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay convolution and linear weights; norms and biases (one dimension) have none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW.

    Fused: one kernel for all parameters, and it can skip a step on the device (`found_inf`) without a host sync.
    """
    groups = parameter_groups(model, config.weight_decay)
    if config.name == "sgd":
        sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=True)
        # torch allocates these uninitialised in the first step; where that one is skipped they stay garbage.
        for parameter in model.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def lr_at(step: int, config: OptimConfig, total_steps: int, steps_per_epoch: int) -> float:
    """Learning rate of step 0 <= step < total_steps: linear warm-up, then cosine or linear to zero."""
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    fall = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.lr * fall


def ema_decay_at(step: int, decay: float) -> float:
    """Decay of the average after step `step`: short at first, so that the initial weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))

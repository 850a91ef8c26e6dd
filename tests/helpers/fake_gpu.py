#!/usr/bin/env python3
"""Train on a GPU that does not exist: shapes, types and devices of all tensors are checked, nothing is computed.

    python tests/helpers/fake_gpu.py tiny1m bf16          # three steps, a snapshot, an evaluation
    python tests/helpers/fake_gpu.py tiny1m bf16 item     # with a step that waits for the device: raises

torch's FakeTensorMode refuses what would fail or wait on a GPU: a tensor or an index on the host among tensors of the
device, and any value that the host reads. The device is a backend of its own, because torch for CPUs refuses "cuda".
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import Library, fallthrough_kernel
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # which puts the repository on the path

from throughput import make_trainer

from helpers.recording import Launched
from tinyimnet import config_cli
from tinyimnet.distributed import process_group
from tinyimnet.distributed.rendezvous import Rendezvous
from tinyimnet.evaluation.inference import evaluate
from tinyimnet.training import optim
from tinyimnet.training.trainer import Trainer

NAME, AUTOCAST = "fakegpu", "AutocastPrivateUse1"
DEVICE = f"{NAME}:0"


def make_device() -> list[Library]:
    """Register the device with autocast of convolutions and linear layers; the libraries must stay referenced."""
    _setup_privateuseone_for_python_backend(NAME)
    torch.fakegpu.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    others, aten = Library("_", "IMPL"), Library("aten", "IMPL")
    others.fallback(fallthrough_kernel, AUTOCAST)
    for name in ("conv2d", "linear"):
        aten.impl(name, in_low_precision(getattr(torch.ops.aten, name)), AUTOCAST)
    for name in ("_fused_sgd_", "_fused_sgd_.tensor_lr", "_fused_adamw_.tensor_lr"):
        aten.impl(name, lambda *_args, **_kwargs: None, "Meta")
    return [others, aten]


def in_low_precision(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cast the floating-point arguments of an operation, as autocast does."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def call(*arguments: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*(a.to(dtype) if isinstance(a, Tensor) else a for a in arguments))

    return call


def move(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Do what nn.Module._apply does, which cannot exchange the content of fake tensors."""
    for child in module.children():
        move(child, function)
    for name, parameter in module._parameters.items():
        if parameter is not None and (moved := function(parameter.detach())).device != parameter.device:
            module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else function(buffer)
    return module


def trainer(name: str, precision: str, folder: Path) -> Trainer:
    """The trainer of a configuration, on the fake device."""
    soft = ["--augment.soft_label_temperature=3", "--augment.soft_label_standardise=true"]  # if it has soft labels
    config = config_cli.load([f"--config={name}", "--train.global_batch_size=16", *soft])
    # Not compiled: Dynamo and Inductor fail on a device that they do not know.
    train = replace(config.train, device_batch_size=8, init_from="", precision=precision, compile=False)
    accelerator = process_group.start(train, Rendezvous())
    if precision == "fp16":  # Accelerate supports it on devices that it knows
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler(NAME)
    for owner in (Accelerator, type(accelerator.state)):
        owner.device = property(lambda _: torch.device(DEVICE), lambda *_: None)  # type: ignore[assignment]
    return make_trainer(replace(config, train=train), accelerator, folder)


def main(name: str, precision: str, fault: str = "") -> None:
    """Run three steps, a snapshot and an evaluation without its last line, which reads the result."""
    libraries = make_device()
    nn.Module._apply = move  # type: ignore[method-assign, assignment]
    torch.Tensor.pin_memory = lambda tensor: tensor  # type: ignore[method-assign, assignment]
    clip = optim.clip_
    if fault == "item":
        optim.clip_ = lambda *arguments: clip(*arguments).item()  # type: ignore[assignment]
    if fault == "host":
        optim.clip_ = lambda *arguments: clip(*arguments) * torch.ones(1)
    # build_model counts parameters on the meta device, whose tensors are not fake.
    with tempfile.TemporaryDirectory() as folder, FakeTensorMode(allow_non_fake_inputs=True):
        made = trainer(name, precision, Path(folder))
        for _ in range(3):
            made.train_step()
        if precision != "fp16":  # one with the inputs of a CUDA graph, which repeats a single micro-batch
            made.train_step.micro_batches = made.micro_batches[:1]
            made.train_step.graphs = Launched(made.train_step.work, DEVICE)
            made.train_step()
        made.state.snapshot()
        evaluator = made.evaluator
        sums = evaluate(evaluator.consolidated(made.ema.module), evaluator.images, evaluator.labels, range(500),
                        made.batches.normalise, precision=precision)  # fmt: skip
    weights = [*made.bare.parameters(), *made.ema.module.parameters(), made.state.statistics, made.state.counters]
    assert {str(tensor.device) for tensor in [*weights, sums]} == {DEVICE}
    assert {tensor.dtype for tensor in weights} == {torch.float32}
    del libraries


if __name__ == "__main__":
    main(*sys.argv[1:])

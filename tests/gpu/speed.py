"""Sections that measure: the training loop, cuDNN's choices, CUDA graphs, torch.compile."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from result import Result, measured, skipped
from subject import BATCHES, GPU, NETWORKS, STEPS, seconds_per_step, synchronise, trainer
from tinyimnet import config_cli
from tinyimnet.model.network import build_model

DENSE, DEEP = NETWORKS[min(1, len(NETWORKS) - 1)], NETWORKS[0]  # the sprint and tiny1m


def speed(out: Path) -> Iterator[Result]:
    """Images per second, what the host needs for a step, kernels, and the share of the time in which the GPU works."""
    for name in NETWORKS:
        for batch in BATCHES:
            made = trainer(name, batch, out)
            step, host = seconds_per_step(made)
            with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]) as profiler:
                made.train_step()
                synchronise()
            kernels = [event for event in profiler.events() or [] if event.device_type.name == "CUDA"]
            yield measured(
                f"training loop, {name}, bf16, batch {batch}",
                images_per_s=batch / step,
                step_ms=1e3 * step,
                host_ms=1e3 * host,
                kernels_and_copies=len(kernels),
                GPU_busy_percent=100 * sum(event.device_time for event in kernels) / (1e6 * step),
            )
            started = time.perf_counter()
            made.validate()
            evaluation = time.perf_counter() - started
        images = 2 * len(made.evaluator.images)  # raw and averaged weights
        yield measured(f"evaluation, {name}, bf16", images_per_s=images / evaluation)


def cudnn(out: Path) -> Iterator[Result]:
    """What equal bits cost: cuDNN's deterministic kernels against the others, chosen by heuristics or by timing."""
    if not GPU:
        yield skipped("cost of deterministic convolutions")
        return
    for name in (DEEP, DENSE):
        rates = {}
        for choice in ("deterministic", "any", "fastest"):
            made = trainer(name, BATCHES[0], out)  # sets the flags of a run
            torch.backends.cudnn.deterministic = choice == "deterministic"
            torch.backends.cudnn.benchmark = choice == "fastest"
            rates[f"{choice}_images_per_s"] = BATCHES[0] / seconds_per_step(made)[0]
        yield measured(f"convolutions of cuDNN, {name}, bf16, batch {BATCHES[0]}", **rates)
    torch.backends.cudnn.benchmark = False


def graph(_: Path) -> Iterator[Result]:
    """What a CUDA graph of forward and backward pass would gain over launching each kernel."""
    for name in (DEEP, DENSE):
        for batch in BATCHES:
            what = f"forward and backward pass, {name}, bf16, batch {batch}"
            eager = forward_and_backward(name, batch)
            numbers = {"launched_ms": 1e3 * seconds(eager)}
            yield measured(what, **numbers, captured_ms=1e3 * seconds(captured(eager))) if GPU else skipped(what)


def forward_and_backward(name: str, batch: int) -> Callable[[], None]:
    """A function that trains a network on one resident batch, without an optimizer."""
    device = torch.device("cuda" if GPU else "cpu")
    network = build_model(config_cli.load([f"--config={name}"]).model, 200).to(device).train()
    images = torch.randn(batch, 3, 64, 64, device=device).to(memory_format=torch.channels_last)
    targets = torch.rand(batch, 200, device=device)

    def step() -> None:
        for weight in network.parameters():
            weight.grad = None
        # A graph must not use casts of weights that autocast has cached outside of it.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            output = network(images)
        F.cross_entropy(output.float(), targets).backward()

    return step


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The same work as one CUDA graph (docs.pytorch.org, "CUDA Graphs": first some steps in a stream of their own)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        step()
    return recorded.replay


def seconds(step: Callable[[], None]) -> float:
    """Seconds of one call, the mean of several."""
    step()
    synchronise()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    synchronise()
    return (time.perf_counter() - started) / STEPS


def compiled(out: Path) -> Iterator[Result]:
    """What train.compile gains, and what it costs at the start."""
    for name in (DENSE, DEEP):
        what = f"train.compile, {name}, bf16, batch {BATCHES[0]}"
        if not GPU:
            yield skipped(what)
            continue
        launched = BATCHES[0] / seconds_per_step(trainer(name, BATCHES[0], out))[0]
        made = trainer(name, BATCHES[0], out, compiled=True)
        started = time.perf_counter()
        made.train_step()
        synchronise()
        first = time.perf_counter() - started
        rate = BATCHES[0] / seconds_per_step(made)[0]
        yield measured(what, first_step_s=first, compiled_images_per_s=rate, launched_images_per_s=launched)

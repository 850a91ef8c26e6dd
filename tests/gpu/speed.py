"""Sections that measure: the training loop, cuDNN's choices, CUDA graphs, torch.compile."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from helpers.recording import Launched
from helpers.trainings import equal
from result import Result, claim, measured, skipped
from subject import BATCHES, GPU, NETWORKS, copied, seconds_per_step, synchronise, trainer

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


def graph(out: Path) -> Iterator[Result]:
    """What train.cuda_graph gains, and that its steps have the bits of launched ones."""
    for name in (DEEP, DENSE):
        for batch in BATCHES:
            what = f"a step as a CUDA graph has the bits of a launched one: {name}, bf16, batch {batch}"
            if not GPU:
                yield skipped(what)
                continue
            launched, repeated = trainer(name, batch, out), trainer(name, batch, out, cuda_graph=True)
            launched.train_step.graphs = Launched(launched.train_step.work, "cuda")  # rates in fp32, as in a graph
            milliseconds = [1e3 * seconds_per_step(made)[0] for made in (launched, repeated)]
            same = equal(copied(launched), copied(repeated))
            yield claim(what, same, launched_ms=milliseconds[0], graph_ms=milliseconds[1])


def compiled(out: Path) -> Iterator[Result]:
    """What train.compile gains, and what it costs at the start."""
    for name in (DENSE, DEEP):
        what = f"train.compile, {name}, bf16, batch {BATCHES[0]}"
        if not GPU:
            yield skipped(what)
            continue
        launched = BATCHES[0] / seconds_per_step(trainer(name, BATCHES[0], out))[0]
        made = trainer(name, BATCHES[0], out, compile=True)
        started = time.perf_counter()
        made.train_step()
        synchronise()
        first = time.perf_counter() - started
        rate = BATCHES[0] / seconds_per_step(made)[0]
        yield measured(what, first_step_s=first, compiled_images_per_s=rate, launched_images_per_s=launched)

"""Time spent in each part of a step, measured without waiting for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("data", "forward_backward", "optimizer")


class StepClock:
    """Times the parts of a step: on a GPU by CUDA events on the device's timeline, otherwise by the host's clock.

    Args:
        device: the device that runs the computation.

    Attributes:
        steps: steps since the last `restart`, counted by the caller.
        others: clocks that get the time of each part too.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.device = device
        self.others: tuple[StepClock, ...] = ()
        self.restart()

    def restart(self) -> None:
        """Start a new measurement."""
        self.steps, self.started = 0, time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the enclosed code to a part of the step; costs 2 us on a CPU."""
        if self.on_gpu and torch.cuda.is_current_stream_capturing():  # a graph has no times
            yield
        elif self.on_gpu:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            after.record()
            for clock in (self, *self.others):
                clock._events.append((name, before, after))
        else:
            started = time.perf_counter()
            yield
            seconds = time.perf_counter() - started
            for clock in (self, *self.others):
                clock._seconds[name] += seconds

    def read(self, global_batch_size: int) -> dict[str, float]:
        """Images/s, and the mean step and its parts in ms, since `restart`; call it after a device sync.

        `wait` is the remainder: agreeing on stops, logging, copying a checkpoint and, on a GPU, all time in which none
        of the parts ran there.
        """
        seconds = time.perf_counter() - self.started
        parts = {name: 1000 * part for name, part in self._seconds.items()}
        for name, before, after in self._events:
            parts[name] += before.elapsed_time(after)
        whole = {"step": 1000 * seconds, **parts, "wait": max(0.0, 1000 * seconds - sum(parts.values()))}
        values = {f"perf/{name}_ms": ms / self.steps for name, ms in whole.items()}
        values["perf/images_per_s"] = self.steps * global_batch_size / seconds
        if self.on_gpu:
            values["perf/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return values

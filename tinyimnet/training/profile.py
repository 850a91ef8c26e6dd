"""A trace of a few steps by torch.profiler (run.profile): which operators take the time, and what waits for what."""

import gzip
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity

from tinyimnet.console import console, counted, short
from tinyimnet.files import write_atomically
from tinyimnet.training.timing import PARTS, StepClock

logger = logging.getLogger(__name__)

# Steps of an attempt that are not recorded: libraries allocate and choose algorithms in them, torch.compile compiles.
WARM_UP = 10
LONGEST = 10  # operators in the table


class Profile:
    """Records steps of an attempt; at its end, a context manager that writes what was recorded.

    Args:
        steps: steps to record; 0: none.
        folder: receives trace.json.gz and operators.txt.
        clock: times the parts of every step.
    """

    def __init__(self, steps: int, folder: Path, clock: StepClock):
        self.steps, self.folder, self.clock = steps, folder, clock
        self._taken = 0
        self._recording: torch.profiler.profile | None = None

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self.steps and self._taken <= WARM_UP:
            logger.warning(
                "run.profile recorded nothing: this attempt took %s, and the first %d are not recorded",
                counted(self._taken, "step"),
                WARM_UP,
            )

    @contextmanager
    def step(self) -> Iterator[None]:
        """Record the step that is taken inside, if it is its turn; the last one also waits for the device."""
        if self.steps and self._taken == WARM_UP:
            self._start()
        yield
        self._taken += 1
        if self._taken == WARM_UP + self.steps:
            self._end()

    def _start(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "10")  # otherwise torch prints two lines for its developers
        activities = [ProfilerActivity.CPU]
        if self.clock.on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._wait()  # the device still works on earlier steps
        self._recording = torch.profiler.profile(activities=activities)
        self._recording.start()
        self.clock.others = (StepClock(self.clock.device),)

    def _end(self) -> None:
        """Write what is recorded, and print the share of each part of a step."""
        if not self._recording:
            return
        recorded, self._recording = self._recording, None
        self._wait()
        ended, steps = time.perf_counter(), self._taken - WARM_UP
        (own,), self.clock.others = self.clock.others, ()
        own.steps = max(1, steps)  # 0 if the first one failed
        ms = own.read(global_batch_size=1)
        recorded.stop()
        shares = {name: 100 * ms[f"perf/{name}_ms"] / ms["perf/step_ms"] for name in (*PARTS, "wait")}
        parts = ", ".join(f"{name.replace('_', ' + ')} {share:.0f} %" for name, share in shares.items())
        console.print(f"profile of {counted(steps, 'step')}: {parts} ({short(self.folder)})")
        try:
            self._write(recorded)
        except OSError as error:  # the training does not need it
            logger.warning("%s is not written: %s", self.folder, error)
        self.clock.started += time.perf_counter() - ended  # seconds that are no part of a step

    def _wait(self) -> None:
        if self.clock.on_gpu:
            torch.cuda.synchronize(self.clock.device)

    def _write(self, recorded: torch.profiler.profile) -> None:
        self.folder.mkdir(exist_ok=True)
        longest = "self_device_time_total" if self.clock.on_gpu else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=longest, row_limit=LONGEST)
        write_atomically(self.folder / "operators.txt", table)
        with TemporaryDirectory(dir=self.folder) as scratch:
            trace = Path(scratch, "trace.json")
            recorded.export_chrome_trace(str(trace))
            if not trace.exists():  # torch prints its error and raises nothing
                raise OSError("torch could not write the trace")
            write_atomically(self.folder / "trace.json.gz", gzip.compress(trace.read_bytes()))

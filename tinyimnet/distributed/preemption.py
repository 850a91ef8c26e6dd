"""Requests to stop: a signal, a STOP file, the end of the job, a launcher that died. They set a flag; all ranks act on it together.

Nothing is saved inside a signal handler. The loop asks `agreed` at every step boundary, and a stop is one save.
"""

import os
import signal
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from tinyimnet.distributed.launcher import launcher_pid

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
LOOK = 1.0  # seconds between two looks for a STOP file
# Above every signal number: the reason travels between ranks as one number.
_STOP_FILE, _LAUNCHER_GONE, _DEADLINE = 101, 102, 103
_IN_WORDS = {
    _STOP_FILE: "a STOP file in the run folder",
    _LAUNCHER_GONE: "the end of the launcher",
    _DEADLINE: "the end of the job's time",
}
# What a person asks for. Everything else comes from a scheduler, which is to start the run again.
_BY_A_PERSON = (signal.SIGINT.name, _IN_WORDS[_STOP_FILE])


class StopRequest:
    """Collects requests to stop on every rank and lets the ranks agree.

    Args:
        run_dir: a file STOP in it is a request.
        deadline: Unix time at which the run is asked to stop.
    """

    def __init__(self, run_dir: Path, deadline: float = float("inf")):
        self.stop_file, self.deadline = run_dir / "STOP", deadline
        self.code = 0
        self._launcher = launcher_pid()
        self._first_interrupt = float("inf")
        self._last_look = self._last_agreement = time.monotonic()
        self._steps, self._interval = 0, 1

    def install(self) -> None:
        """Take over the stop signals of this process; under nohup SIGHUP stays ignored."""
        for number in SIGNALS:
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        # Ctrl-C reaches a worker twice within milliseconds, from the terminal and from torchrun's agent.
        if number == signal.SIGINT and now - self._first_interrupt > 1:
            # No exception: on its way out it would wait for a save and for W&B.
            os.write(2, b"second Ctrl-C: leaving without a save\n")
            os._exit(128 + number)
        if number == signal.SIGINT:
            self._first_interrupt = min(self._first_interrupt, now)
        self.code = self.code or number

    def agreed(self, accelerator: Accelerator) -> str:
        """Why all ranks stop before the next step; empty: they go on.

        Several ranks compare notes about once a second only, because that waits for the device. The number of steps
        between two looks is agreed on in the same reduction, so that every rank takes part in each of them.
        """
        self._look()
        if accelerator.num_processes == 1:
            return describe(self.code)
        self._steps += 1
        if self._steps < self._interval:
            return ""
        seconds = (time.monotonic() - self._last_agreement) / self._steps
        notes = torch.tensor([float(self.code), seconds], device=accelerator.device, dtype=torch.float32)
        torch.distributed.all_reduce(notes, torch.distributed.ReduceOp.MAX)
        code, seconds = notes.tolist()
        self._steps, self._interval = 0, max(1, min(1000, int(1 / max(seconds, 1e-3))))
        self._last_agreement = time.monotonic()
        return describe(int(code))

    def _look(self) -> None:
        """Look for the STOP file once a second: each look is a round trip on a network file system."""
        # A launcher that is killed leaves its worker behind, to train for ever.
        if self._launcher and os.getppid() != self._launcher:
            self.code = self.code or _LAUNCHER_GONE
        if time.time() > self.deadline:
            self.code = self.code or _DEADLINE
        if time.monotonic() - self._last_look > LOOK:
            self._last_look = time.monotonic()
            if self.stop_file.exists():
                self.code = self.code or _STOP_FILE


def wants_requeue(reason: str) -> bool:
    """Whether a run that was stopped for this reason is to be started again without a person."""
    return reason not in _BY_A_PERSON


def describe(code: int) -> str:
    """The reason behind a code, in words; empty for 0."""
    return _IN_WORDS.get(code) or (signal.Signals(code).name if code else "")

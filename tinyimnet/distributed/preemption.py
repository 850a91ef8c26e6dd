"""Stop requests: signals, a STOP file, the end of the job, a dead launcher.

A request sets a flag, and all ranks act on it together. Nothing is saved inside a signal handler: the loop calls
`agreed` at every step boundary and saves once.
"""

import os
import signal
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from tinyimnet.distributed.launcher import launcher_pid

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
LOOK = 1.0  # seconds between checks for a STOP file
# Above every signal number, because ranks exchange the reason as one number.
_STOP_FILE, _LAUNCHER_GONE, _DEADLINE = 101, 102, 103
_IN_WORDS = {
    _STOP_FILE: "a STOP file in the run folder",
    _LAUNCHER_GONE: "the exit of the launcher",
    _DEADLINE: "the job's time limit",
}
# Requests from a person. All others come from a scheduler, which should requeue the run.
_BY_A_PERSON = (signal.SIGINT.name, _IN_WORDS[_STOP_FILE])


class StopRequest:
    """Collects stop requests on every rank and lets the ranks agree on them.

    Args:
        run_dir: the run folder; a file STOP in it is a request.
        deadline: Unix time at which to stop.
    """

    def __init__(self, run_dir: Path, deadline: float = float("inf")):
        self.stop_file, self.deadline = run_dir / "STOP", deadline
        self.code = 0
        self._launcher = launcher_pid()
        self._first_interrupt = float("inf")
        self._last_look = self._last_agreement = time.monotonic()
        self._steps, self._interval = 0, 1
        self._alive_at, self._longest_pause = float("inf"), 0.0

    def install(self) -> None:
        """Install handlers for the stop signals; under nohup SIGHUP stays ignored."""
        for number in SIGNALS:
            if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        # Ctrl-C reaches a worker twice within milliseconds, from the terminal and from torchrun's agent.
        if number == signal.SIGINT and now - self._first_interrupt > 1:
            # Not an exception, which would wait for a save and for W&B while it propagates.
            os.write(2, b"second Ctrl-C: exiting without saving\n")
            os._exit(128 + number)
        if number == signal.SIGINT:
            self._first_interrupt = min(self._first_interrupt, now)
        self.code = self.code or number

    def agreed(self, accelerator: Accelerator) -> str:
        """The reason for all ranks to stop before the next step; "" to continue.

        Several ranks exchange requests only about once a second, because an exchange waits for the device. The same
        reduction agrees on the number of steps until the next exchange, so that every rank takes part in it.
        """
        self._look()
        self._alive_at = min(self._alive_at, time.monotonic())  # the loop has begun
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
        if code:
            self.end_loop()
        return describe(int(code))

    def launcher_gone(self) -> bool:
        """Whether this process was started by a launcher that has exited."""
        return bool(self._launcher) and os.getppid() != self._launcher

    def alive(self) -> None:
        """Note a sign of life of the loop: a step or a batch of an evaluation is done."""
        if self._alive_at < float("inf"):
            now = time.monotonic()
            self._longest_pause = max(self._longest_pause, now - self._alive_at)
            self._alive_at = now

    def end_loop(self) -> None:
        """Note that the loop no longer has to respond: the ranks have agreed to stop, or the last step is done."""
        self._alive_at = float("inf")

    def ignored_for(self, since: float, now: float, *, at_least: float) -> bool:
        """Whether the loop has shown no sign of life for much longer than usual since a request at `since`."""
        usual = self._longest_pause  # 0 before the end of the first step, which may compile the network
        return usual > 0 and now - max(since, self._alive_at) > max(at_least, 3 * usual)

    def _look(self) -> None:
        """Check for a dead launcher, the deadline and, once a second, a STOP file.

        Each check for the file is a round trip on a network file system.
        """
        # A killed launcher leaves its workers behind, and they would train forever.
        if self.launcher_gone():
            self.code = self.code or _LAUNCHER_GONE
        if time.time() > self.deadline:
            self.code = self.code or _DEADLINE
        if time.monotonic() - self._last_look > LOOK:
            self._last_look = time.monotonic()
            if self.stop_file.exists():
                self.code = self.code or _STOP_FILE


def wants_requeue(reason: str) -> bool:
    """Whether a run that stopped for this reason should be requeued automatically."""
    return reason not in _BY_A_PERSON


def describe(code: int) -> str:
    """The reason for a code, in words; "" for 0."""
    return _IN_WORDS.get(code) or (signal.Signals(code).name if code else "")

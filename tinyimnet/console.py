"""Console output: a progress bar on a terminal, plain lines in a log, tables."""

import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from rich import progress
from rich.console import Console
from rich.table import Table

logger = logging.getLogger(__name__)


# A log has no terminal width, for which rich would assume 80 columns.
console = Console(
    markup=False,  # a name such as lr[low] or a:fire: is text
    emoji=False,
    highlight=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() else 120,
)


FIRST_LINE, PAUSE = 5.0, 10.0  # longest silence after the start and between two lines, in seconds


class Progress:
    """Progress of a run on the main process; a context manager.

    The bar is redrawn at each log line, and between them at steps (`alive`), not by a thread, which would take time
    from the training.

    Args:
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one epoch.
        work_left: (since, step) -> work from `step` to the end, as a multiple of the work from `since` to `step`.
        enabled: whether to print at all.
    """

    def __init__(
        self, total_steps: int, steps_per_epoch: int, work_left: Callable[[int, int], float], *, enabled: bool
    ):
        self.total_steps, self.steps_per_epoch, self.enabled = total_steps, steps_per_epoch, enabled
        self.work_left = work_left
        self.started = self._alive_at = time.monotonic()
        self.first_step, self._due = 0, float("inf")
        self.bar = progress.Progress(
            progress.TextColumn("epoch {task.fields[epoch]}", markup=False),
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[values]}, ETA {task.fields[eta]}", markup=False),
            console=console,
            auto_refresh=False,
            expand=True,
            disable=not (enabled and console.is_interactive),  # a dumb terminal cannot redraw a line
        )
        self.task = self.bar.add_task("", total=total_steps, epoch=self._epoch(0), values="starting", eta="?")

    def __enter__(self) -> "Progress":
        self.started = self._alive_at = time.monotonic()
        self._due = self.started + FIRST_LINE
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.bar.disable:  # rich's own stop() prints an empty line in a log
            self.bar.stop()
            self._due = float("inf")  # the last evaluation is shown in a log only

    def resumed(self, step: int) -> None:
        """Print where a resumed run continues."""
        self.first_step = step
        if self.enabled:
            console.print(f"resumed at step {step} of {self.total_steps} (epoch {self._epoch(step)})")

    def compiling(self, resolutions: Sequence[int]) -> None:
        """Print for which resolutions the network will be compiled; in px."""
        if self.enabled:
            graphs, listed = counted(len(resolutions), "graph"), ", ".join(map(str, resolutions))
            console.print(f"torch.compile makes {graphs}, before the first step at {listed} px")

    def compiled(self, resolution: int, seconds: float, left: int) -> None:
        """Print that the network is compiled for a resolution in px, and for how many it is not yet."""
        self.started += seconds  # the time left is estimated from steps alone; the first one took 48 s to compile
        if self.enabled:
            console.print(f"compiled for {resolution} px in {seconds:.0f} s, {left} to come")

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show the values of a log line; an evaluation always leaves a line behind."""
        if not self.enabled:
            return
        values = f"loss {metrics['train/loss']:.3f}, {metrics['perf/images_per_s']:,.0f} images/s"
        if "perf/mfu" in metrics:
            values += f", MFU {metrics['perf/mfu']:.1f} %"
        eta = self._eta(step)
        self.bar.update(self.task, completed=step, epoch=self._epoch(step), values=values, eta=eta, refresh=True)
        evaluated = "val/top1" in metrics
        if evaluated:
            values += f", val top-1 {metrics['val/top1']:.2f} %, EMA {metrics['val/ema_top1']:.2f} %"
        line = f"epoch {self._epoch(step)} step {step}/{self.total_steps}: {values}, ETA {eta}"
        logger.info(line)
        if evaluated or self.bar.disable:
            console.print(line)
        self._due = time.monotonic() + PAUSE

    def alive(self, step: int, doing: str = "training") -> None:
        """Show a step between two log lines if otherwise the next one would come too late; does not use the device."""
        now = time.monotonic()
        pause, self._alive_at = now - self._alive_at, now
        if not self.enabled or now + pause < self._due:
            return
        self._due = now + PAUSE
        eta = self._eta(step) if step > self.first_step else "?"
        self.bar.update(self.task, completed=step, epoch=self._epoch(step), eta=eta, refresh=True)
        if self.bar.disable:
            console.print(f"epoch {self._epoch(step)} step {step}/{self.total_steps}: {doing}, ETA {eta}")

    def _epoch(self, step: int) -> str:
        """Epochs done and in all: 1.4/6."""
        return f"{step / self.steps_per_epoch:.1f}/{self.total_steps / self.steps_per_epoch:g}"

    def _eta(self, step: int) -> str:
        elapsed = time.monotonic() - self.started
        return clock(elapsed * self.work_left(self.first_step, step))


def command(*arguments: object) -> str:
    """A `tinyimnet` command that works when pasted into this shell, activated environment or not."""
    script = shutil.which("tinyimnet")
    on_path = script and Path(script).parent == Path(sys.executable).parent
    activated = Path(os.environ.get("VIRTUAL_ENV", "")) == Path(sys.prefix) or sys.prefix == sys.base_prefix
    program = ["tinyimnet"] if on_path and activated else [short(Path(sys.executable)), "-m", "tinyimnet"]
    return shlex.join(map(str, [*program, *(short(a) if isinstance(a, Path) else a for a in arguments)]))


def short(path: Path) -> Path:
    """A path relative to the working directory if it is inside, for people to read and paste."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 epoch, 1,000 epochs."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def moment(seconds: float) -> str:
    """A Unix time in the local time zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def print_table(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
    """Print a table; columns of numbers are right-aligned."""
    grid = Table(title=title, title_justify="left", show_header=bool(header))
    for i in range(len(rows[0])):
        numeric = i > 0 and all(row[i][:1].isdigit() for row in rows)
        grid.add_column(header[i] if header else "", justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)

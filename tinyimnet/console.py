"""What a person sees while a run goes on: a bar on a terminal, plain lines under a scheduler, a table at the end."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Table

logger = logging.getLogger(__name__)


class _Output:
    """sys.stdout, but a full disk behind it or a closed pipe does not end a training."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stdout.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


# In a scheduler's log there is no terminal to ask for its width, and rich would take 80 columns.
console = Console(
    file=_Output(),  # type: ignore[arg-type]
    highlight=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() else 120,
)


class Progress:
    """Progress of a run on the main process; a context manager.

    The bar is redrawn where a line is logged and not by a thread, which would take time from the training.

    Args:
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: those of an epoch.
        work_left: of (since, step): work from `step` to the end as a multiple of that since an earlier step.
        enabled: whether anything is shown at all.
    """

    def __init__(
        self, total_steps: int, steps_per_epoch: int, work_left: Callable[[int, int], float], *, enabled: bool
    ):
        self.total_steps, self.steps_per_epoch, self.enabled = total_steps, steps_per_epoch, enabled
        self.work_left = work_left
        self.started, self.first_step = time.monotonic(), 0
        self.bar = progress.Progress(
            progress.TextColumn("epoch {task.fields[epoch]}"),
            progress.BarColumn(),
            progress.TextColumn("{task.completed}/{task.total} steps, {task.fields[values]}, ETA {task.fields[eta]}"),
            console=console,
            auto_refresh=False,
            disable=not (enabled and console.is_terminal),
        )
        self.task = self.bar.add_task("", total=self.total_steps, epoch="0", values="starting", eta="?")

    def __enter__(self) -> "Progress":
        self.started = time.monotonic()
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def resumed(self, step: int) -> None:
        """Say where a resumed run goes on."""
        self.first_step = step
        if self.enabled:
            console.print(f"resumed at step {step} of {self.total_steps} (epoch {step / self.steps_per_epoch:.2f})")

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show the values of a log line; an evaluation always leaves a line behind."""
        if not self.enabled:
            return
        epoch = f"{step / self.steps_per_epoch:.2f}"
        values = f"loss {metrics['train/loss']:.3f}, lr {metrics['train/lr']:.4f}, {metrics['perf/images_per_s']:,.0f} images/s"
        eta = self._eta(step)
        self.bar.update(self.task, completed=step, epoch=epoch, values=values, eta=eta, refresh=True)
        evaluated = "val/top1" in metrics
        if evaluated:
            values += f", val top-1 {metrics['val/top1']:.2f} %, EMA {metrics['val/ema_top1']:.2f} %"
        line = f"epoch {epoch} step {step}/{self.total_steps}: {values}, ETA {eta}"
        logger.info(line)
        if evaluated or not console.is_terminal:
            self.bar.console.print(line)

    def _eta(self, step: int) -> str:
        elapsed = time.monotonic() - self.started
        return clock(elapsed * self.work_left(self.first_step, step))


def clock(seconds: float) -> str:
    """Seconds as 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def moment(seconds: float) -> str:
    """A Unix time in the zone of this machine."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def print_table(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
    """Print a table; the first column is text, columns of numbers are right-aligned."""
    grid = Table(title=title, title_justify="left", show_header=bool(header))
    for i in range(len(rows[0])):
        numeric = i > 0 and all(row[i][:1].isdigit() for row in rows)
        grid.add_column(header[i] if header else "", justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)

"""report.html of a run, which rank 0 writes after evaluations and at the end of every attempt."""

import logging
import time
from pathlib import Path

from tinyimnet.files import exists, write_atomically
from tinyimnet.run.record import with_metrics
from tinyimnet.run.states import RUNNING

logger = logging.getLogger(__name__)
PAUSE = 200  # times the duration of a write, for which no other follows: the pages take at most 0.5 % of the time


def write_page(run_dir: Path, state: str = "") -> bool:
    """Write the page of a run that has metrics; a failure is only reported, because no page is worth a run.

    Args:
        run_dir: run folder.
        state: state of the run; empty for that of the folder.

    Returns:
        Whether there is a new page.
    """
    try:
        from tinyimnet.report import one_run  # here: jinja2 takes a tenth of a second, and a page may be damaged

        if not (exists(run_dir / "metrics.jsonl") and (run_dir / "metrics.jsonl").stat().st_size):
            return False
        write_atomically(run_dir / one_run.PAGE, one_run.page(with_metrics(run_dir), state))
    except Exception as error:
        logger.warning("report.html is not written: %s", error)
        return False
    return True


class LivePage:
    """The page of a run that trains.

    The loop waits for `update`, 0.13 s for a run of 1,000 rows and 0.3 s for 5,000 on a core of an Intel Xeon. A page
    follows only PAUSE times as long after the one before, so that neither short epochs nor a slow file system make the
    pages costly.

    Args:
        run_dir: run folder.
        enabled: whether to write at all.
    """

    def __init__(self, run_dir: Path, *, enabled: bool):
        self.run_dir, self.enabled = run_dir, enabled
        self._due = 0.0

    def update(self) -> None:
        """Write the page, unless that would slow down the training."""
        started = time.monotonic()
        if self.enabled and started >= self._due:
            write_page(self.run_dir, RUNNING)
            ended = time.monotonic()
            self._due = ended + PAUSE * (ended - started)

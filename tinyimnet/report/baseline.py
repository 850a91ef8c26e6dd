"""The accuracy to which a report compares its runs."""

from dataclasses import dataclass
from pathlib import Path

from tinyimnet.errors import UserError
from tinyimnet.files import expanded
from tinyimnet.report.charts import Curve
from tinyimnet.run.metrics import TOP1
from tinyimnet.run.record import with_metrics

DASHED = 15  # the last colour, dashed


@dataclass(frozen=True)
class Baseline:
    """A top-1 accuracy in percent and its name in the legend."""

    name: str
    top1: float

    def curve(self, last: float) -> Curve:
        """A level line from step 0 to `last`."""
        return Curve(self.name, [0, last], [self.top1, self.top1], DASHED)


def read_baseline(text: str) -> Baseline:
    """A number of percent, or the EMA top-1 of a run folder: the final one, or the newest of a run that trains.

    Raises:
        UserError: the number is not a percentage, or the folder is not a run with an evaluation.
    """
    try:
        percent = float(text)
    except ValueError:
        return _of_run(expanded(text, "--baseline"))
    if not 0 <= percent <= 100:
        raise UserError(f"--baseline is {text} and must be a top-1 accuracy from 0 to 100 percent, or a run folder.")
    return Baseline("baseline", percent)


def _of_run(path: Path) -> Baseline:
    run = with_metrics(path)
    top1 = run.results.get(TOP1, run.last(TOP1))
    if top1 is None:
        raise UserError(f"--baseline {path} has no evaluation yet; give another run, or a number of percent.")
    return Baseline(f"baseline {run.name}", top1)

"""Results of the GPU check: claims that hold or do not, and figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

NO_GPU = "torch sees no GPU"


@dataclass(frozen=True)
class Result:
    """One result.

    Attributes:
        what: the claim, or what was measured.
        outcome: "passed", "failed", "skipped" or "measured".
        numbers: figures by name, with their units in the names.
        section: the section that found it.
    """

    what: str
    outcome: str
    numbers: dict[str, float | str] = field(default_factory=dict)
    section: str = ""

    def __str__(self) -> str:
        return f"  {self.outcome:8} {self.what}{': ' if self.numbers else ''}{self.in_words()}"

    def in_words(self) -> str:
        """The figures as text."""
        return ", ".join(f"{name.replace('_', ' ')} {_short(number)}" for name, number in self.numbers.items())


def claim(what: str, holds: bool, **numbers: float | str) -> Result:
    """A claim that was checked."""
    return Result(what, "passed" if holds else "failed", numbers)


def measured(what: str, **numbers: float | str) -> Result:
    """Figures without a claim."""
    return Result(what, "measured", numbers)


def failed(what: str) -> Result:
    """A claim that does not hold."""
    return Result(what, "failed")


def skipped(what: str, why: str = NO_GPU) -> Result:
    """A claim that could not be checked."""
    return Result(what, "skipped", {"because": why})


def markdown(results: Sequence[Result]) -> str:
    """All results as one table, with the failed ones first."""
    order = sorted(results, key=lambda result: result.outcome != "failed")
    cells = [(result.section, result.what, result.outcome, result.in_words()) for result in order]
    rows = [("section", "what", "outcome", "figures"), ("---",) * 4, *cells]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


def _short(number: float | str) -> str:
    if isinstance(number, str):
        return number
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.3g}"

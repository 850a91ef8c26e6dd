"""Number formats of the report."""


def number(value: float) -> str:
    """Format a finite number with four significant digits, integers in full: 1,000 / 34.2 / 0.001234."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Format a percentage, such as 34.20 %; empty for None."""
    return "" if value is None else f"{value:.2f} %"


def result(key: str, value: float | None) -> str:
    """Format a final value: a loss with four decimals, a percentage with two, "-" for None."""
    if value is None:
        return "-"
    return f"{value:.4f}" if "loss" in key else f"{value:.2f}"

"""How numbers are written on the page."""


def number(value: float) -> str:
    """A finite number as 1,000 / 34.2 / 0.001234: four significant digits; whole numbers in full."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """34.20 %, or nothing."""
    return "" if value is None else f"{value:.2f} %"


def result(key: str, value: float | None) -> str:
    """A final value in a column of such: a loss with four decimals, percentages with two."""
    if value is None:
        return "-"
    return f"{value:.4f}" if "loss" in key else f"{value:.2f}"

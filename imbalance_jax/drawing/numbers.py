"""Numbers as they are read, on pages and in figures."""

import math
from collections.abc import Callable, Mapping
from typing import Any

ABSENT = "–"


def parse_number(value: Any) -> float:
    """Returns a value of a JSON file as a float; NaN for what is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def format_number(value: float, form: str | Callable[[float], str]) -> str:
    """Writes a number in a format of Python, such as ".3f" or ".1%", or by a function."""
    if callable(form):
        return form(value)
    return f"{value:{form}}".replace("-", "−").replace("%", " %")


def format_significant(value: float, digits: int = 3) -> str:
    """Returns a number with about so many digits: 1,234 and 93.1 and 0.0305 and 2.1e-06."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    if value and abs(value) < 1e-4:
        return f"{value:.{digits - 2}e}".replace("-", "−")
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", "−")


def format_compact(value: float) -> str:
    """Returns a large number in thousands, millions and so on: 12.3 k, 1.60 M."""
    if not math.isfinite(value):
        return format_significant(value)
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{format_significant(value / factor)} {unit}"
    return f"{value:.3g}"


def format_compact_tick(value: float) -> str:
    """Returns 40 k, where `format_compact` says 40.0 k."""
    if value < 1000:
        return f"{value:.6g}"
    number, _, unit = format_compact(value).partition(" ")
    return f"{_drop_zeros(number)} {unit}".rstrip()


def format_two_decimals(value: float) -> str:
    """Returns a cosine as 0.25 or −0.03; a dash for what is not finite."""
    if not math.isfinite(value):
        return ABSENT
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def format_count(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def format_percent(fraction: float) -> str:
    """Returns a fraction in percent, with zeros that say nothing left out."""
    return f"{_drop_zeros(format_significant(100 * fraction))} %"


def _drop_zeros(written: str) -> str:
    """Returns a number without the zeros at the end of its decimals."""
    if "." not in written or "e" in written:
        return written
    return written.rstrip("0").rstrip(".")


def normalize_to_fractions(values: Mapping[str, float]) -> dict[str, float]:
    whole = math.fsum(values.values())
    return {name: value / whole if whole else 0.0 for name, value in values.items()}

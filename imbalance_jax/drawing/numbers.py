"""Numbers as text with few digits, on pages and on the axes of figures."""

import math
import re


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
    return re.sub(r"(\.\d*?)0+(?= |$)", r"\1", format_compact(value)).replace(". ", " ")


def format_two_decimals(value: float) -> str:
    """Returns a cosine as 0.25 or −0.03; a dash for what is not finite."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")

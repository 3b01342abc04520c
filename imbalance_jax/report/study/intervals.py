"""Numbers of a study with their intervals, as they are read."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from imbalance_jax.analysis.statistics import Estimate, Interval
from imbalance_jax.drawing.numbers import ABSENT, format_significant
from imbalance_jax.drawing.pages import get_pieces, render_number

if TYPE_CHECKING:
    from markupsafe import Markup


def format_signed(value: float, digits: int = 3) -> str:
    if not math.isfinite(value):
        return ABSENT
    # A zero has no sign.
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if rounded else ''}.{digits}f}".replace("-", "−")


def format_perplexity(value: float) -> str:
    return format_significant(value) if value < 1e6 else f"{value:.2e}"


def compute_capped_exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def format_interval(interval: Interval, write: Callable[[float], str]) -> str:
    """Returns 0.1 to 0.2; nothing where an end is not known."""
    low, high = interval
    return "" if math.isnan(low) or math.isnan(high) else f"{write(low)} to {write(high)}"


def render_with_interval(
    value: float, interval: Interval, write: Callable[[float], str], *, prefix: str = ""
) -> "Markup | str":
    """Returns a number, its interval small behind it; a dash for NaN."""
    if math.isnan(value):
        return ABSENT
    ends = format_interval(interval, write)
    return render_number(value, write) + (get_pieces().small(f"{prefix}{ends}") if ends else "")


def render_estimate(estimate: Estimate | None, write: Callable[[float], str]) -> "Markup | str":
    """Returns an estimate with its interval; a dash for None."""
    if estimate is None:
        return ABSENT
    return render_with_interval(estimate.value, estimate.interval(), write)

"""Figures for people."""

from __future__ import annotations

import math


def three_digits(value: float) -> str:
    """A positive number with three significant digits, and without an exponent down to a millionth."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(digits, 0), 8)}f}"

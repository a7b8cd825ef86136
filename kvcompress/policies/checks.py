"""Checks of policy parameters."""

from __future__ import annotations

import math


def check_whole(name: str, value: object, *, at_least: int) -> None:
    """Raises unless ``value`` is an int that is no bool and not below ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}; got {value}")


def check_number(name: str, value: object, *, above: float | None = None, at_least: float | None = None) -> None:
    """Raises unless ``value`` is a finite number within the bound."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value!r}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be greater than {above}; got {value!r}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name} must be at least {at_least}; got {value!r}")

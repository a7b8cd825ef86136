"""Checks of policy parameters."""

from __future__ import annotations

import math


def check_whole(name: str, value: object, *, at_least: int) -> None:
    """Raises unless ``value`` is an int that is no bool and not below ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}; got {value}")


def check_odd(name: str, value: object) -> None:
    """Raises unless ``value`` is an odd whole number, at least 1."""
    check_whole(name, value, at_least=1)
    if isinstance(value, int) and value % 2 == 0:
        raise ValueError(f"{name} must be odd, so that a token is pooled evenly; got {value}")


def check_share(name: str, value: object) -> None:
    """Raises unless ``value`` is a number in [0, 1]."""
    check_number(name, value, at_least=0.0)
    if isinstance(value, int | float) and value > 1:
        raise ValueError(f"{name} is a fraction and must lie in [0, 1]; got {value!r}")


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

"""Options that hold several values with commas between."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvcompress.commands.failures import CommandError

_LONGEST_RANGE = 1 << 16


def names(option: str, listed: str, known: Sequence[str]) -> list[str]:
    """Names from a list of known ones, each once, in the order given.

    Args:
        option: as it is written on the command line.
        listed: what was given.
        known: the names that there are.

    Raises:
        CommandError: none, an unknown one, or one twice.
    """
    found = _parts(listed)
    unknown = [name for name in found if name not in known]
    if not found or unknown or len(set(found)) < len(found):
        raise CommandError(f"{option} must be of {', '.join(known)}, with commas between, each once; got {listed!r}")
    return found


def fractions(option: str, listed: str, *, least: float = 0.0, most: float = 1.0) -> list[float]:
    """Numbers in a range, in the order given.

    Raises:
        CommandError: none, or one that is no number or out of range.
    """
    try:
        found = [float(part) for part in _parts(listed)]
    except ValueError:
        found = []
    if not found or not all(math.isfinite(number) and least <= number <= most for number in found):
        raise CommandError(f"{option} must be numbers in [{least:g}, {most:g}] with commas between; got {listed!r}")
    return found


def indices(option: str, listed: str | None) -> list[int] | None:
    """Whole numbers of at least 0, ascending; None where nothing was given.

    Raises:
        CommandError: none in what was given, or something else.
    """
    if listed is None:
        return None
    found: set[int] = set()
    for part in _parts(listed):
        first, _, last = part.partition("-")
        last = last or first
        if not (first.isdecimal() and last.isdecimal()) or not 0 <= int(last) - int(first) < _LONGEST_RANGE:
            found = set()
            break
        found.update(range(int(first), int(last) + 1))
    if not found:
        raise CommandError(f"{option} must be whole numbers or ranges with commas between, as 0,2,8-11; got {listed!r}")
    return sorted(found)


def _parts(listed: str) -> list[str]:
    return [part.strip() for part in listed.split(",") if part.strip()]

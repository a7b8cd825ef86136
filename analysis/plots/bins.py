"""Position bins of a capture, as places on an axis of tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


def bin_edges(tokens: int, bins: int) -> tuple[Whole, Whole]:
    """Where the bins ``position * bins // tokens`` begin and end.

    Args:
        tokens: positions, at least 1.
        bins: bins that they were sorted into.

    Returns:
        The bins that hold a position at all, int64 ``[occupied]``, and their edges as positions, int64
        ``[occupied + 1]``, from 0 to ``tokens``. With fewer tokens than bins every occupied bin holds one token.
    """
    starts = -(-np.arange(bins + 1, dtype=np.int64) * tokens // bins)  # the smallest position of each bin
    occupied = np.flatnonzero(np.diff(starts))
    return occupied, np.append(starts[occupied], tokens)


def per_token(mass: Floats, tokens: int) -> tuple[Floats, Whole]:
    """Mass per bin as mean mass per token, since bins of one capture differ in width.

    Args:
        mass: ``[..., bins]``, mass of all tokens of a bin together.
        tokens: positions that were sorted into them.

    Returns:
        Mean mass per token ``[..., occupied]``, and the edges of :func:`bin_edges`.
    """
    occupied, edges = bin_edges(tokens, mass.shape[-1])
    return mass[..., occupied] / np.diff(edges), edges


def on_edges(mass: Floats, tokens: int, edges: Floats | Whole) -> Floats:
    """Mass per bin, spread evenly within each bin, as mean mass per token between other edges.

    Args:
        mass: ``[bins]``, mass of all tokens of a bin together.
        tokens: positions that were sorted into them.
        edges: ``[n + 1]``, ascending positions.

    Returns:
        ``[n]``; NaN where an interval lies beyond ``tokens`` altogether.
    """
    occupied, own = bin_edges(tokens, mass.shape[-1])
    cumulative = np.concatenate([[0.0], np.cumsum(mass[occupied])])
    inside = np.minimum(edges, tokens)
    widths = np.diff(inside).astype(np.float64)
    gained = np.diff(np.interp(inside, own, cumulative))
    density: Floats = np.divide(gained, widths, out=np.full(len(widths), np.nan), where=widths > 0)
    return density


def rows_on_common_edges(mass: Floats, tokens: Whole) -> tuple[Floats, Whole]:
    """Mass per bin of several steps, each with bins of its own, on the bins of the last step.

    Args:
        mass: ``[steps, bins]``.
        tokens: positions that were sorted into them at each step, ascending, ``[steps]``.

    Returns:
        Mean mass per token ``[steps, occupied]``, NaN beyond what a step had seen, and the edges ``[occupied + 1]``.
    """
    _, edges = bin_edges(int(tokens[-1]), mass.shape[-1])
    return np.stack([on_edges(row, int(seen), edges) for row, seen in zip(mass, tokens, strict=True)]), edges

"""How much of a sample goes into the page, and which events where not all of them can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kvcompress.analysis.report.encoding import (
    Array,
    Coding,
    encode_byte,
    encode_exact,
    encode_floats,
    encode_half,
    encode_integers,
)

TEXT_BYTES_PER_BYTE: Final = 4 / 3  # base64


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what a page holds.

    Shares are of ``sample_bytes``, each at most of what others have left; what all leave goes to masses per token.

    Attributes:
        page_bytes: of all samples together.
        sample_bytes: most of one sample.
        events: most steps of the time slider.
        statistics: share for the statistics of each head at each step.
        profiles: share for masses by position and distance, and the top positions.
        heatmaps: share for the maps of queries by keys.
        evictions: share for when and in what stage each token was evicted.
        scores: share for the policy's scores.
        norms: share for the norms of keys, and again for those of values.
        influence: share for the mass that decoded tokens paid to each token.
        token_text: most characters of a token's text.
    """

    page_bytes: int = 48 * 2**20
    sample_bytes: int = 27 * 2**20
    events: int = 1000
    statistics: float = 0.10
    profiles: float = 0.10
    heatmaps: float = 0.08
    evictions: float = 0.25
    scores: float = 0.40
    norms: float = 0.05
    influence: float = 0.05
    token_text: int = 256

    def of_sample(self, samples: int) -> int:
        """Bytes that each of so many samples may take."""
        return min(self.sample_bytes, self.page_bytes // max(samples, 1))


def spread(candidates: Sequence[int], count: int, always: Sequence[int] = ()) -> list[int]:
    """Chooses evenly spaced candidates, with the first and, where there is room, the last among them.

    Args:
        candidates: ascending numbers.
        count: how many to choose, at least 1.
        always: candidates to choose first of all, as many as ``count`` allows.

    Returns:
        The chosen ones, ascending; all of them where there are no more than ``count``.
    """
    if len(candidates) <= count:
        return list(candidates)
    first = set(_evenly(always, count))
    others = count
    while len(first | set(_evenly(candidates, others))) > count:
        others -= 1
    return sorted(first | set(_evenly(candidates, others)))


def halving(candidates: Sequence[int]) -> list[int]:
    """Orders candidates so that every beginning of the order is spread: first, last, middle, quarters and so on."""
    order = list(dict.fromkeys([*candidates[:1], *candidates[-1:]]))
    gaps = [(0, len(candidates) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            order.append(candidates[middle])
            gaps += [(low, middle), (middle, high)]
    return order


def events_within(events: Sequence[int], bytes_per_event: int, limit: int, always: Sequence[int] = ()) -> list[int]:
    """Chooses as many events as a limit holds, at least one."""
    return spread(events, max(1, int(limit / (bytes_per_event * TEXT_BYTES_PER_BYTE))), always)


def per_head(what: str) -> tuple[Coding, ...]:
    """Ways to write ``[layers, heads, ...]``, best first."""
    return (
        Coding(name="exact", encode=encode_floats, note=""),
        Coding(name="byte", encode=encode_byte, note=f"{what} are rounded to 8 bits (253 steps per layer)."),
        Coding(
            name="mean half",
            encode=lambda values: encode_half(_head_mean(values)),
            note=f"{what} are means over a layer's heads.",
        ),
        Coding(
            name="mean byte",
            encode=lambda values: encode_byte(_head_mean(values)),
            note=f"{what} are means over a layer's heads, rounded to 8 bits (253 steps per layer).",
        ),
    )


def per_layer(what: str) -> tuple[Coding, ...]:
    """Ways to write ``[layers, ...]``, best first."""
    return per_head(what)[:2]


def whole_numbers() -> tuple[Coding, ...]:
    """The one way to write integers."""
    return (Coding(name="exact", encode=encode_integers, note=""),)


def exact_floats() -> tuple[Coding, ...]:
    """The one way to write numbers that must not be rounded."""
    return (Coding(name="exact", encode=encode_exact, note=""),)


def _evenly(candidates: Sequence[int], count: int) -> list[int]:
    if len(candidates) <= count:
        return list(candidates)
    if count <= 0:
        return []
    return [candidates[index] for index in np.unique(np.linspace(0, len(candidates) - 1, count).round().astype(int))]


def _head_mean(values: Array) -> Any:
    """The mean of the finite values along axis 1, which stays, with one entry; NaN where there is none."""
    finite = np.isfinite(values)
    count = finite.sum(1, keepdims=True)
    total = np.where(finite, values, 0.0).sum(1, keepdims=True, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)

"""Compares the tokens that two sides keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kvcompress.bench.peers.answering import Answer, Kept

Row = dict[str, Any]


def compare_kept(pairs: Iterable[tuple[Answer, Answer]], tokens: int) -> Row:
    """Compares kept sets, one per prompt, layer and head.

    Args:
        pairs: answers of both sides to the same batches, ours first.
        tokens: tokens of each prompt.

    Returns:
        ``rows`` compared; how many are ``equal``; how many are ``explained``: equal, or different only by tokens whose
        score is that at the cut, and by the last token, which ours never evict; and ``shared``, the part of our tokens
        that theirs keep too.
    """
    rows = equal = explained = shared = total = 0
    for ours, theirs in pairs:
        sets = (_sets(found) for found in (ours.kept, theirs.kept, ours.tied))
        for own, other, tied in zip(*sets, strict=True):
            rows += 1
            equal += own == other
            explained += _is_explained(own, other, tied, tokens - 1)
            shared += len(own & other)
            total += len(own)
    return {"rows": rows, "equal": equal, "explained": explained, "shared": shared / total if total else None}


def _is_explained(own: set[int], other: set[int], tied: set[int], last: int) -> bool:
    """Whether two kept sets differ only by what has the score at the cut, and by the last token."""
    gained, lost = own - other, other - own
    in_its_place = 1 if last in gained else 0  # the token that had to go for the last one is below the cut
    return gained - {last} <= tied and len(lost - tied) <= in_its_place and len(own) == len(other)


def _sets(kept: Kept | None) -> Iterator[set[int]]:
    for layer in kept or []:
        for sample in layer:
            yield from (set(head) for head in sample)

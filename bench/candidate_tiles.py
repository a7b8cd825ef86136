"""Tiles that the tuner tries, and how the launchers are made to take one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from typing import Final

from kvcompress.bench.tunable_kernels import Tunable
from kvcompress.kernels import tiles
from kvcompress.kernels.tiles import Tile, power_of_two

_MOST_ROWS: Final = 128
# Decoding reads each slot once: small blocks leave room for many programs, and two warps may do.
_DECODE_BLOCKS, _DECODE_WARPS, _DECODE_STAGES = (16, 32, 64, 128), (2, 4, 8), (2, 3)
# Triton puts the loads of a loop behind all that is done with a tile, so n stages keep n - 2 tiles on their way while
# one is worked on. With two programs of 64 keys on each multiprocessor one such tile is hardly enough for an H200.
_WINDOW_BLOCKS, _WINDOW_WARPS, _WINDOW_STAGES = (32, 64, 128), (4, 8), (2, 3, 4)


def candidates(kernel: str, *, group: int, window: int, rule: Tile) -> Iterator[Tile]:
    """Tiles worth a try, the rule's first.

    Args:
        kernel: ``"window_lse"``, ``"window_scores"`` or ``"decode_attend"``.
        group: query heads per kv head.
        window: queries per head.
        rule: what is taken without tuning.
    """
    yield rule
    if kernel == "decode_attend":
        heads = [rule.heads]  # all heads of a group read the same keys; one read is what the kernel is about
        sizes = product(_DECODE_BLOCKS, heads, _DECODE_WARPS, _DECODE_STAGES)
    else:
        most = max(1, min(power_of_two(group), _MOST_ROWS // power_of_two(window, 16)))
        heads = [count for count in (most, most // 2, most // 4) if count >= 1]
        sizes = product(_WINDOW_BLOCKS, heads, _WINDOW_WARPS, _WINDOW_STAGES)
    for block_n, count, warps, stages in sizes:
        tile = Tile(block_n=block_n, heads=count, warps=warps, stages=stages)
        if tile != rule:
            yield tile


@contextmanager
def using(key: str, tile: Tile) -> Iterator[None]:
    """Has the launchers take a tile as if it stood in ``tiles.json``."""
    measured = tiles._measured()
    before = measured.get(key)
    measured[key] = asdict(tile)
    try:
        yield
    finally:
        if before is None:
            del measured[key]
        else:
            measured[key] = before


def rule_of(target: Tunable) -> Tile:
    """The tile that the rules give, whatever ``tiles.json`` says."""
    measured = tiles._measured()
    before = measured.pop(target.key, None)
    try:
        return target.rule()
    finally:
        if before is not None:
            measured[target.key] = before

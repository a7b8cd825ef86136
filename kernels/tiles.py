"""Tile sizes of the attention kernels: a pure function of architecture, dtype, head_dim, group and window.

No autotuning: it cannot run without a GPU, and results must not depend on what a tuner found in one run. What the
tuner (``python -m kvcompress.bench.tune_tiles``) measured stands in ``tiles.json`` and goes before the rules here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

ARCHITECTURES: Final[tuple[str, ...]] = ("sm80", "sm90", "sm100", "gfx942")
MEASURED: Final[Path] = Path(__file__).with_name("tiles.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """How one kernel is cut into programs.

    Attributes:
        block_n: keys (or slots) per iteration.
        heads: query heads of a group per program, a power of two; larger groups take several programs.
        warps: warps per program.
        stages: depth of the software pipeline.
    """

    block_n: int
    heads: int
    warps: int
    stages: int


def power_of_two(n: int, least: int = 1) -> int:
    """The least power of two that is not below ``n`` and ``least``."""
    return 1 << (max(n, least) - 1).bit_length()


def architecture(device: torch.device) -> str:
    """The architecture whose tiles a device takes: the newest known one that is not newer than the device.

    Args:
        device: a GPU; anything else (the interpreter) takes ``"sm80"``.
    """
    if device.type != "cuda":
        return "sm80"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm100" if major >= 10 else "sm90" if major == 9 else "sm80"


def tile(kernel: str, *, architecture: str, dtype: torch.dtype, head_dim: int, group: int, window: int = 1) -> Tile:
    """The tile of a kernel.

    Args:
        kernel: ``"window_lse"``, ``"window_scores"``, ``"window_scores_masked"`` or ``"decode_attend"``.
        architecture: one of :data:`ARCHITECTURES`.
        dtype: of queries and keys.
        head_dim: the larger of key and value sizes.
        group: query heads per kv head.
        window: queries per head.

    Raises:
        ValueError: unknown kernel or architecture.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}; got {architecture!r}")
    rule = _RULES.get(kernel)
    if rule is None:
        raise ValueError(f"kernel must be one of {', '.join(_RULES)}; got {kernel!r}")
    key = tile_key(kernel, architecture=architecture, dtype=dtype, head_dim=head_dim, group=group, window=window)
    measured = _measured().get(key)
    if measured is not None:
        return Tile(**measured)
    return rule(architecture, dtype.itemsize, head_dim, group, window)


def tile_key(kernel: str, *, architecture: str, dtype: torch.dtype, head_dim: int, group: int, window: int) -> str:
    """Under what name a tile stands in ``tiles.json``."""
    sizes = f"D{power_of_two(head_dim, 16)}/G{power_of_two(group)}/W{power_of_two(window)}"
    return f"{kernel}/{architecture}/{8 * dtype.itemsize}bit/{sizes}"


@cache
def _measured() -> dict[str, dict[str, Any]]:
    if not MEASURED.is_file():
        return {}
    tiles: dict[str, dict[str, Any]] = json.loads(MEASURED.read_text(encoding="utf-8"))["tiles"]
    return tiles


def _window_rule(architecture: str, itemsize: int, head_dim: int, group: int, window: int) -> Tile:
    """All queries of a window are in the tile; at most 128 rows of 16-bit, 32 of float32 (no tensor cores).

    Heads over 256 take at most 64 rows and 32 keys of 16 bits, half of each on gfx942, where each of four warps has the
    registers of two.

    Where some version of Triton (3.6 to 3.9) spills with 64 keys and four warps, there are fewer keys (many rows on
    sm80, which take all 255 registers), more warps (many rows elsewhere, wide heads), or fewer rows (wide heads on
    sm100, and on gfx942, whose shared memory is 64 KB).
    On an H200, 128k keys, a third stage takes a fifth (scores) and a third (log-sum-exp) off the time with two.
    """
    wide, blackwell = head_dim > 128, architecture == "sm100"
    window = power_of_two(window, 16)
    if head_dim > 256:
        amd = architecture == "gfx942"
        heads = max(1, min(power_of_two(group), (32 if itemsize == 4 or amd else 64) // window))
        few = itemsize == 2 and amd
        return Tile(block_n=16 if few else 32, heads=heads, warps=4 if few else 8, stages=2)
    most = 32 if itemsize == 4 or (wide and architecture == "gfx942") else 64 if wide and blackwell else 128
    heads = max(1, min(power_of_two(group), most // window))
    many = heads * window > 64
    if itemsize == 4:
        eight = architecture != "gfx942" and (many or (wide and blackwell))
    else:
        eight = blackwell or (many and (wide or architecture == "sm90"))
    few_keys = itemsize == 4 or (many and not wide and architecture == "sm80")
    deep = architecture == "sm90" and itemsize == 2 and not wide
    return Tile(block_n=32 if few_keys else 64, heads=heads, warps=8 if eight else 4, stages=3 if deep else 2)


def _plain_scores_rule(architecture: str, itemsize: int, head_dim: int, group: int, window: int) -> Tile:
    """As :func:`_window_rule`, but for Hopper without masks, where four warps hold a whole tile.

    Eight would share the rows of a key, and every statistic would go through shared memory: half as slow again on an
    H200.
    """
    chosen = _window_rule(architecture, itemsize, head_dim, group, window)
    if architecture == "sm90" and itemsize == 2 and head_dim <= 128 and window <= 64:
        return replace(chosen, warps=4)
    return chosen


def _decode_rule(architecture: str, itemsize: int, head_dim: int, group: int, window: int) -> Tile:
    """Slots are read once: small blocks keep registers free for many programs; a third stage spills in Triton 3.6.

    On an H200 blocks of 128 slots on eight warps take a quarter less time.

    What spills is left out: float32 ("ieee" products are plain multiplications) with more than 16 slots or heads; on
    gfx942, 32 heads and 32 slots of heads over 128; anywhere, more than 16 slots for heads over 256, and four warps for
    those over 128. On gfx942 those over 256 are the other way round in 16 bits: eight warps spill.
    """
    wide, amd, vast = head_dim > 128, architecture == "gfx942", head_dim > 256
    roomy = itemsize == 2 and not wide and not amd
    if roomy and architecture == "sm90":
        heads = min(power_of_two(group, 16), 32)
        return Tile(block_n=128 if heads == 16 else 64, heads=heads, warps=8, stages=2)
    return Tile(
        block_n=16 if itemsize == 4 or (wide and amd) or vast else 32,
        heads=min(power_of_two(group, 16), 32 if roomy else 16),
        warps=8 if wide and not (vast and amd and itemsize == 2) else 4,
        stages=2,
    )


_RULES: Final = {
    "window_lse": _window_rule,
    "window_scores": _plain_scores_rule,
    "window_scores_masked": _window_rule,
    "decode_attend": _decode_rule,
}

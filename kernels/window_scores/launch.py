"""Launches the kernels of ``window_scores``: shapes, scratch memory and grids. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

from kvcompress.kernels.configuration import COMPILE_OPTIONS
from kvcompress.kernels.dispatch import interpreting
from kvcompress.kernels.tiles import Tile, architecture, power_of_two, tile
from kvcompress.kernels.window_scores import kernel

# Keys per program, by the number of keys up to which that is taken: few keys need many programs to fill a device, many
# keys need few sums to be joined. Never derived from the number of processors: sums, and so results, must not depend on
# the device.
SPLITS: Final = ((8192, 512), (32768, 1024), (131072, 2048))
LARGEST_SPLIT: Final = 4096
COMBINE_ROWS: Final = 32
COMBINE_SPLITS: Final = 32
POOL_KEYS: Final = 1024
TOTAL_PROGRAMS: Final = 512
_LOG2E: Final = 1.4426950408889634


class Request(NamedTuple):
    """What is asked of the kernels; the meaning of each is that in ``window_scores_reference``.

    Attributes:
        scaling: factor on ``q · k``.
        scored: keys that get scores.
        emit: whether score, mean, variance, maximum and entropy per key are wanted.
        gamma: weight of the variance in the score.
        pool_size: width of the score's pooling.
        softcap: or None.
        sinks: ``[query_heads]``, or None.
        sliding_window: or None.
        positions: int64 ``[batch, kv_heads or 1, keys]``, or None.
        last_position: absolute position of the last query; None: that of the last key.
        valid_queries: bool ``[batch, window]``, or None.
        log_sum_exp: natural, ``[batch, query_heads, window]``, or None.
    """

    scaling: float
    scored: int
    emit: Sequence[bool]
    gamma: float
    pool_size: int
    softcap: float | None
    sinks: torch.Tensor | None
    sliding_window: int | None
    positions: torch.Tensor | None
    last_position: int | None
    valid_queries: torch.Tensor | None
    log_sum_exp: torch.Tensor | None


def tile_constants(chosen: Tile, *, group: int, window: int, head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments that the two kernels with a product share.

    Args:
        chosen: the kernel's tile.
        group: query heads per kv head.
        window: queries per head.
        head_dim: size of a head.
        dtype: of queries and keys.
    """
    return {
        "GROUP": group,
        "HEADS": chosen.heads,
        "BLOCK_W": power_of_two(window, 16),
        "HEAD_DIM": head_dim,
        "BLOCK_D": 16 if dtype == torch.float32 else power_of_two(head_dim, 16),
        "BLOCK_N": chosen.block_n,
        "UPCAST": interpreting(),
    }


def scores_tile(*, all_seen: bool, softcap: bool) -> str:
    """Name of the tile of the scores kernel: what masks and softcap compute needs registers.

    Args:
        all_seen: every query sees every scored key.
        softcap: logits are capped.
    """
    return "window_scores" if all_seen and not softcap else "window_scores_masked"


def mask_constants(*, window: int, all_seen: bool, valid_queries: bool) -> dict[str, bool]:
    """Compile-time arguments that say which masks the scores kernel needs.

    Args:
        window: queries per head.
        all_seen: every query sees every scored key.
        valid_queries: some queries may not count.
    """
    return {"ALL_SEEN": all_seen, "ALL_COUNT": window == power_of_two(window, 16) and not valid_queries}


def split_of(keys: int) -> int:
    """Keys per program; a multiple of every tile's ``block_n``.

    Args:
        keys: how many there are.
    """
    return next((split for most, split in SPLITS if keys <= most), LARGEST_SPLIT)


def chunks_of(group: int, heads: int) -> int:
    """Programs among which the heads of a group are shared out."""
    return -(-group // heads)


class _Problem:
    """One call: shapes, contiguous last axes, and the arguments that both kernels with a product take."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, request: Request) -> None:
        self.request = request
        self.query = query if query.stride(-1) == 1 else query.contiguous()
        self.key = key if key.stride(-1) == 1 else key.contiguous()
        self.batch, self.query_heads, self.window, self.head_dim = query.shape
        self.kv_heads, self.keys = key.shape[1], key.shape[2]
        self.group = self.query_heads // self.kv_heads
        self.last_position = self.keys - 1 if request.last_position is None else request.last_position
        self.positions: torch.Tensor | None = None
        position_strides: tuple[int, ...] = (0, 0, 0)
        if request.positions is not None:
            self.positions = request.positions.to(torch.int64).expand(self.batch, self.kv_heads, self.keys)
            position_strides = self.positions.stride()
        self.strides = (*self.query.stride()[:3], *self.key.stride()[:3], *position_strides)
        # Base 2 from the start, where no tanh stands between.
        self.scale = request.scaling * (_LOG2E if request.softcap is None else 1.0)

    def tile(self, name: str) -> tuple[Tile, dict[str, Any]]:
        """The tile of a kernel and the compile-time arguments that follow from it."""
        chosen = tile(
            name,
            architecture=architecture(self.query.device),
            dtype=self.query.dtype,
            head_dim=self.head_dim,
            group=self.group,
            window=self.window,
        )
        constants = tile_constants(
            chosen, group=self.group, window=self.window, head_dim=self.head_dim, dtype=self.query.dtype
        )
        return chosen, {**constants, "num_warps": chosen.warps, "num_stages": chosen.stages, **COMPILE_OPTIONS}

    def empty(self, *shape: int) -> torch.Tensor:
        """Uninitialised float32 on the device."""
        return torch.empty(shape, dtype=torch.float32, device=self.query.device)


def launch_window_scores(
    query: torch.Tensor, key: torch.Tensor, request: Request
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Runs the kernels.

    Args:
        query: ``[batch, query_heads, window, head_dim]``, of any strides.
        key: ``[batch, kv_heads, keys, head_dim]``, of any strides.
        request: the rest.

    Returns:
        Statistics per key, float32 ``[batch, kv_heads, scored]`` or of no elements where not wanted; and
        float32 ``[2, batch]``, entropy and total variance.
    """
    problem = _Problem(query, key, request)
    with torch.cuda.device_of(query):
        if request.scored == 0 or problem.batch == 0:
            shape = (problem.batch, problem.kv_heads, request.scored)
            statistics = [problem.empty(*shape) if wanted else problem.empty(0) for wanted in request.emit]
            return statistics, _totals(problem, problem.empty(2, problem.batch, 0))
        if request.log_sum_exp is None:
            log_sum_exp, correction = _log_sum_exp(problem)
        else:
            log_sum_exp, correction = request.log_sum_exp.to(torch.float32).contiguous(), None
        return _scores(problem, log_sum_exp, correction)


def _log_sum_exp(problem: _Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp of base 2 and the correction of its probabilities, both ``[batch, query_heads, window]``."""
    request = problem.request
    chosen, constants = problem.tile("window_lse")
    split_keys = split_of(problem.keys)
    splits = -(-problem.keys // split_keys)
    rows = problem.batch * problem.query_heads * problem.window
    partial = problem.empty(2, splits, rows)
    grid = (splits, problem.kv_heads * chunks_of(problem.group, chosen.heads), problem.batch)
    kernel._window_lse_kernel[grid](
        problem.query,
        problem.key,
        problem.positions,
        partial,
        *problem.strides,
        problem.keys,
        problem.window,
        problem.last_position,
        request.sliding_window,
        split_keys,
        problem.scale,
        request.softcap,
        **constants,
    )
    sinks = None if request.sinks is None else request.sinks.to(torch.float32).contiguous()
    joined = problem.empty(2, problem.batch, problem.query_heads, problem.window)
    kernel._lse_combine_kernel[(-(-rows // COMBINE_ROWS),)](
        partial,
        sinks,
        joined,
        rows,
        splits,
        problem.window,
        problem.query_heads,
        BLOCK_R=COMBINE_ROWS,
        BLOCK_S=COMBINE_SPLITS,
        **COMPILE_OPTIONS,
    )
    return joined[0], joined[1]


def _scores(
    problem: _Problem, log_sum_exp: torch.Tensor, correction: torch.Tensor | None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Probabilities, their statistics and the pooling of the score."""
    request = problem.request
    all_seen = (
        request.positions is None
        and request.sliding_window is None
        and request.scored <= problem.last_position - problem.window + 2
    )
    chosen, constants = problem.tile(scores_tile(all_seen=all_seen, softcap=request.softcap is not None))
    split_keys = split_of(request.scored)
    chunks, splits = chunks_of(problem.group, chosen.heads), -(-request.scored // split_keys)
    grid = (splits, problem.kv_heads * chunks, problem.batch)
    valid = None if request.valid_queries is None else request.valid_queries.to(torch.bool).view(torch.uint8)
    shape = (problem.batch, problem.kv_heads, chunks, request.scored)
    found = [problem.empty(*shape) if wanted else None for wanted in request.emit]
    totals = problem.empty(2, problem.batch, problem.kv_heads * chunks * splits)
    kernel._window_scores_kernel[grid](
        problem.query,
        problem.key,
        log_sum_exp,
        correction,
        problem.positions,
        valid,
        *found,
        totals,
        *problem.strides,
        *((0, 0) if valid is None else valid.stride()),
        request.scored,
        problem.window,
        problem.last_position,
        request.sliding_window,
        split_keys,
        problem.scale,
        request.softcap,
        float(request.gamma),
        **constants,
        **mask_constants(window=problem.window, all_seen=all_seen, valid_queries=valid is not None),
    )
    joined = [_joined(index, statistic, request.pool_size) for index, statistic in enumerate(found)]
    statistics = [problem.empty(0) if statistic is None else statistic for statistic in joined]
    return statistics, _totals(problem, totals)


def _joined(index: int, statistic: torch.Tensor | None, pool_size: int) -> torch.Tensor | None:
    """Joins the chunks of heads, ``[batch, kv_heads, chunks, scored]``, of the statistic with this place in emit."""
    if statistic is None:
        return None
    chunks = statistic.shape[2]
    if index == 0 and (chunks > 1 or pool_size > 1):
        return _pooled(statistic, pool_size)
    if chunks == 1:
        return statistic.squeeze(2)
    return statistic.amax(2) if index == 3 else statistic.sum(2)


def _pooled(chunks: torch.Tensor, pool_size: int) -> torch.Tensor:
    batch, kv_heads, count, scored = chunks.shape
    score = chunks.new_empty(batch, kv_heads, scored)
    kernel._pool_scores_kernel[(-(-scored // POOL_KEYS), batch * kv_heads)](
        chunks, score, scored, CHUNKS=count, POOL=pool_size, BLOCK_N=POOL_KEYS, **COMPILE_OPTIONS
    )
    return score


def _totals(problem: _Problem, partial: torch.Tensor) -> torch.Tensor:
    """Adds up ``[2, batch, programs]`` in float64; fewer than two queries have no variance."""
    totals = problem.empty(2, problem.batch)
    if problem.batch:
        kernel._totals_kernel[(2 * problem.batch,)](
            partial, totals, partial.shape[2], BLOCK=TOTAL_PROGRAMS, **COMPILE_OPTIONS
        )
    if problem.request.valid_queries is not None:
        few = problem.request.valid_queries.sum(1) < 2
        totals[1] = totals[1].masked_fill(few, float("nan"))
    elif problem.window < 2:
        totals[1] = float("nan")
    return totals

"""window_scores as an operator: Triton on a GPU (or in its interpreter), the reference on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvcompress.kernels.dispatch import MAX_HEAD_DIM, interpreting, most_window
from kvcompress.kernels.window_scores.reference import (
    STATISTICS,
    AttentionSpec,
    Statistic,
    WindowScores,
    window_scores_reference,
)

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.custom_op("kvcompress::window_scores", mutates_args=(), device_types="cpu")
def _window_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    scored: int,
    emit: Sequence[bool],
    gamma: float,
    pool_size: int,
    softcap: float | None,
    sinks: torch.Tensor | None,
    sliding_window: int | None,
    positions: torch.Tensor | None,
    last_position: int | None,
    valid_queries: torch.Tensor | None,
    log_sum_exp: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    if interpreting():
        results: _Results = _window_scores_triton(
            *(query, key, scaling, scored, emit, gamma, pool_size, softcap, sinks, sliding_window),
            *(positions, last_position, valid_queries, log_sum_exp),
        )
        return results
    found = window_scores_reference(
        query,
        key,
        spec=AttentionSpec(scaling, softcap, sinks, sliding_window),
        scored=scored,
        emit=tuple(name for name, wanted in zip(STATISTICS, emit, strict=True) if wanted),
        gamma=gamma,
        pool_size=pool_size,
        positions=positions,
        last_position=last_position,
        valid_queries=valid_queries,
        log_sum_exp=log_sum_exp,
    )
    score, mean, variance, maximum, token_entropy = (
        query.new_empty(0, dtype=torch.float32) if each is None else each for each in found[:5]
    )
    if found.score is found.mean:  # gamma 0 and nothing pooled: results of an operator must not share memory
        score = score.clone()
    return score, mean, variance, maximum, token_entropy, torch.stack([found.entropy, found.total_variance])


@_window_scores.register_kernel("cuda")
def _window_scores_triton(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    scored: int,
    emit: Sequence[bool],
    gamma: float,
    pool_size: int,
    softcap: float | None,
    sinks: torch.Tensor | None,
    sliding_window: int | None,
    positions: torch.Tensor | None,
    last_position: int | None,
    valid_queries: torch.Tensor | None,
    log_sum_exp: torch.Tensor | None,
) -> _Results:
    from kvcompress.kernels.window_scores.launch import Request, launch_window_scores  # Triton only where a kernel runs

    request = Request(
        *(scaling, scored, emit, gamma, pool_size, softcap, sinks, sliding_window),
        *(positions, last_position, valid_queries, log_sum_exp),
    )
    (score, mean, variance, maximum, token_entropy), totals = launch_window_scores(query, key, request)
    return score, mean, variance, maximum, token_entropy, totals


@_window_scores.register_fake
def _window_scores_fake(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    scored: int,
    emit: Sequence[bool],
    gamma: float,
    pool_size: int,
    softcap: float | None,
    sinks: torch.Tensor | None,
    sliding_window: int | None,
    positions: torch.Tensor | None,
    last_position: int | None,
    valid_queries: torch.Tensor | None,
    log_sum_exp: torch.Tensor | None,
) -> _Results:
    shape = (query.shape[0], key.shape[1], scored)
    score, mean, variance, maximum, token_entropy = (
        query.new_empty(shape if wanted else (0,), dtype=torch.float32) for wanted in emit
    )
    totals = query.new_empty((2, query.shape[0]), dtype=torch.float32)
    return score, mean, variance, maximum, token_entropy, totals


def window_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    spec: AttentionSpec,
    scored: int,
    emit: tuple[Statistic, ...] = ("score",),
    gamma: float = 0.0,
    pool_size: int = 1,
    positions: torch.Tensor | None = None,
    last_position: int | None = None,
    valid_queries: torch.Tensor | None = None,
    log_sum_exp: torch.Tensor | None = None,
) -> WindowScores:
    """Scores the first ``scored`` keys by the attention of the window queries, without the attention matrix.

    What the arguments mean, and all formulas: :func:`window_scores_reference`, whose results these are.

    Args:
        query: ``[batch, query_heads, window, head_dim]``; float32, float16 or bfloat16; of any strides.
        key: ``[batch, kv_heads, keys, head_dim]`` of the same dtype; of any strides.
        spec: scaling, softcap, sinks, sliding window.
        scored: how many keys, from the first, get scores.
        emit: which statistics per key are wanted.
        gamma: weight of the variance in ``score``.
        pool_size: odd width of the pooling of ``score``; 1 pools nothing.
        positions: int64 ``[batch or 1, kv_heads or 1, keys]``, -1 for a key that must not be seen, or None.
        last_position: absolute position of the last query; needed with ``positions``.
        valid_queries: bool ``[batch, window]``, or None.
        log_sum_exp: ``[batch, query_heads, window]``, natural, sinks included; None reads the keys twice.

    Returns:
        A :class:`WindowScores` in float32.

    Raises:
        ValueError: a dtype, a size or a combination of arguments that the kernels do not know.
    """
    _check(query, key, scored, emit, pool_size, positions, last_position)
    *statistics, totals = _window_scores(
        query,
        key,
        spec.scaling,
        scored,
        [name in emit for name in STATISTICS],
        gamma,
        pool_size,
        spec.softcap,
        spec.sinks,
        spec.sliding_window,
        positions,
        last_position,
        valid_queries,
        log_sum_exp,
    )
    score, mean, variance, maximum, token_entropy = (
        each if name in emit else None for name, each in zip(STATISTICS, statistics, strict=True)
    )
    return WindowScores(score, mean, variance, maximum, token_entropy, totals[0], totals[1])


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    scored: int,
    emit: tuple[Statistic, ...],
    pool_size: int,
    positions: torch.Tensor | None,
    last_position: int | None,
) -> None:
    """Raises for what the kernels would compute wrongly or not at all."""
    if query.dtype not in _DTYPES or key.dtype != query.dtype:
        raise ValueError(
            "query and key must both be float32, float16 or bfloat16 for the kernels; got "
            f"{query.dtype} and {key.dtype}: use backend='torch' for others"
        )
    most = most_window(query.shape[-1])
    if query.shape[-1] > MAX_HEAD_DIM or query.shape[2] > most:
        raise ValueError(
            f"the kernels hold heads of at most {MAX_HEAD_DIM}, and of such as these at most {most} queries; got query "
            f"{list(query.shape)}: use backend='torch'"
        )
    if query.shape[-1] != key.shape[-1] or query.shape[0] != key.shape[0] or query.shape[1] % key.shape[1]:
        raise ValueError(
            "query [batch, query_heads, window, head_dim] and key [batch, kv_heads, keys, head_dim] must agree in "
            f"batch and head_dim, and kv_heads divide query_heads; got {list(query.shape)} and {list(key.shape)}"
        )
    if not 0 <= scored <= key.shape[2]:
        raise ValueError(f"scored must be from 0 to the number of keys, {key.shape[2]}; got {scored}")
    if pool_size < 1 or pool_size % 2 == 0:
        raise ValueError(f"pool_size must be odd and at least 1; got {pool_size}: 1 pools nothing")
    if positions is not None and last_position is None:
        raise ValueError("last_position must be given with positions; got None: pass the last query's position")
    unknown = [name for name in emit if name not in STATISTICS]
    if unknown:
        raise ValueError(f"emit must hold of {', '.join(STATISTICS)}; got {', '.join(unknown)}")

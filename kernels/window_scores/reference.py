"""Statistics of the attention that the last queries of a block (the observation window) pay to the keys before them.

Computed blockwise over the keys: the ``[window, keys]`` attention matrix is never held, only one block of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

Statistic = Literal["score", "mean", "variance", "maximum", "entropy"]
STATISTICS: tuple[Statistic, ...] = ("score", "mean", "variance", "maximum", "entropy")

# Elements of one block over heads and queries. 2^18 float32 values are 1 MiB: a block stays in a core's L2
# cache through
# all passes. The split depends on heads and window alone, so results don't depend on the device or the batch.
_BLOCK_ELEMENTS = 1 << 18


class AttentionSpec(NamedTuple):
    """What an attention layer does to its logits.

    Attributes:
        scaling: factor on ``q · k``.
        softcap: ``tanh(x / softcap) * softcap`` on scaled logits, or None.
        sinks: learned sink logits ``[query_heads]``, which take part in the softmax's denominator, or None.
        sliding_window: a query sees only the last ``sliding_window`` positions, itself included, or None.
    """

    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    sliding_window: int | None = None


class WindowScores(NamedTuple):
    """What ``window_scores`` returns. A statistic per key that was not asked for is None.

    Attributes:
        score: float32 ``[batch, kv_heads, scored]``, ``mean + gamma * variance``, average-pooled along the keys.
        mean: float32 ``[batch, kv_heads, scored]``, mean over window queries and the query group.
        variance: float32 ``[batch, kv_heads, scored]``, unbiased variance over window queries, mean over the group
            (zero for fewer than two queries).
        maximum: float32 ``[batch, kv_heads, scored]``, maximum over window queries and group.
        token_entropy: float32 ``[batch, kv_heads, scored]``, each key's share ``-sum p log p`` of the entropy, summed
            over window queries and group, in nats.
        entropy: float32 ``[batch]``, ``-sum p log p`` over heads, queries and scored keys, in nats.
        total_variance: float32 ``[batch]``, sum of the per-head variances over heads and scored keys; NaN for fewer
            than two queries, which have none.
    """

    score: torch.Tensor | None
    mean: torch.Tensor | None
    variance: torch.Tensor | None
    maximum: torch.Tensor | None
    token_entropy: torch.Tensor | None
    entropy: torch.Tensor
    total_variance: torch.Tensor


def window_scores_reference(
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
    """Scores the first ``scored`` keys by the attention of the window queries.

    With ``p`` the softmax over ALL keys that a query may see (not renormalised over the scored ones), per key the mean,
    variance and maximum of ``p`` over the window queries; per batch row the entropy and the sum of variances.

    Args:
        query: ``[batch, query_heads, window, head_dim]``, the last queries of the block, with rotary embedding.
        key: ``[batch, kv_heads, keys, head_dim]`` in chronological order; the last ``window`` are the queries' own.
        spec: scaling, softcap, sinks, sliding window.
        scored: how many keys, from the first, get scores.
        emit: which statistics per key are wanted.
        gamma: weight of the variance in ``score``.
        pool_size: odd width of the pooling of ``score``; zero padding counts, 1 pools nothing.
        positions: int64 ``[batch, kv_heads or 1, keys]`` absolute position of each key, -1 for one that must not be
            seen. None: ``0 .. keys-1``, all valid.
        last_position: absolute position of the last query; needed with ``positions``.
        valid_queries: bool ``[batch, window]``, False for padding queries, which then don't count. None: all count.
        log_sum_exp: ``[batch, query_heads, window]``, natural log-sum-exp of each query's logits over all that it sees,
            sinks included, where the attention has given it. Then the keys are read once, not twice.

    Returns:
        A :class:`WindowScores`; float64 input gives float64 results.

    Source:
        Qin et al., CAKE, arXiv 2503.12491, sections 4.2 and 4.3; Li et al., SnapKV, arXiv 2404.14469 (mean, pooling).
    """
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    blocks = _Blocks(query, key, spec, positions, last_position, compute)
    if log_sum_exp is None:
        log_sum_exp = _row_log_sum_exp(blocks)
    else:
        log_sum_exp = log_sum_exp.to(compute).view(blocks.batch, blocks.kv_heads, blocks.group, blocks.window, 1)
    mean, variance, found = _statistics(blocks, log_sum_exp, scored, valid_queries, emit)
    return found._replace(
        score=pool(mean if gamma == 0 else mean + gamma * variance, pool_size) if "score" in emit else None,
        mean=mean if "mean" in emit else None,
        variance=variance if "variance" in emit else None,
    )


def pool(scores: torch.Tensor, size: int) -> torch.Tensor:
    """Average pooling along the last axis with zero padding that counts.

    Args:
        scores: ``[batch, kv_heads, count]``.
        size: odd width; 1 returns the input.
    """
    if size == 1 or scores.shape[-1] == 0:
        return scores
    return F.avg_pool1d(scores, size, stride=1, padding=size // 2)


class _Blocks:
    """Yields masked logits block by block: the one place that knows scaling, softcap, masks and grouping."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        spec: AttentionSpec,
        positions: torch.Tensor | None,
        last_position: int | None,
        compute: torch.dtype,
    ) -> None:
        self.batch, self.query_heads, self.window, head_dim = query.shape
        self.kv_heads, self.keys = key.shape[1], key.shape[2]
        self.group = self.query_heads // self.kv_heads
        grouped = query.reshape(self.batch, self.kv_heads, self.group * self.window, head_dim)
        self.query = grouped.to(compute) * spec.scaling
        self.key, self.spec, self.compute = key, spec, compute
        self.positions = positions
        last = self.keys - 1 if last_position is None else last_position
        self.query_positions = torch.arange(last - self.window + 1, last + 1, device=key.device)
        self.size = max(64, _BLOCK_ELEMENTS // (self.query_heads * self.window))

    def __call__(self, stop: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yields ``(start, end, logits [batch, kv_heads, group, window, end - start])`` for keys below ``stop``."""
        for start in range(0, stop, self.size):
            end = min(start + self.size, stop)
            block = self.key[:, :, start:end].to(self.compute)
            logits = torch.matmul(self.query, block.transpose(-1, -2))
            logits = logits.view(self.batch, self.kv_heads, self.group, self.window, end - start)
            if self.spec.softcap is not None:
                logits = logits.div_(self.spec.softcap).tanh_().mul_(self.spec.softcap)
            visible = self._visible(start, end)
            if visible is not None:
                logits = logits.masked_fill_(~visible, float("-inf"))
            yield start, end, logits

    def _visible(self, start: int, end: int) -> torch.Tensor | None:
        """Bool broadcastable to the block, or None where every query sees every key of it."""
        sliding = self.spec.sliding_window
        if self.positions is None and sliding is None and end <= self.keys - self.window + 1:
            return None
        if self.positions is None:
            key_positions = torch.arange(start, end, device=self.key.device)[None, None]
        else:
            key_positions = self.positions[:, :, start:end]
        distance = self.query_positions[:, None] - key_positions[:, :, None, None, :]
        visible = (distance >= 0) & (key_positions >= 0)[:, :, None, None, :]
        return visible if sliding is None else visible & (distance < sliding)


def _row_log_sum_exp(blocks: _Blocks) -> torch.Tensor:
    """Log-sum-exp of each query's logits, sinks included: ``[batch, kv_heads, group, window, 1]``."""
    parts = [torch.logsumexp(logits, dim=-1) for _, _, logits in blocks(blocks.keys)]
    if blocks.spec.sinks is not None:
        sinks = blocks.spec.sinks.to(blocks.compute).view(1, blocks.kv_heads, blocks.group, 1)
        parts.append(sinks.expand(blocks.batch, -1, -1, blocks.window))
    return torch.logsumexp(torch.stack(parts), dim=0).unsqueeze(-1)


def _statistics(
    blocks: _Blocks,
    log_sum_exp: torch.Tensor,
    scored: int,
    valid_queries: torch.Tensor | None,
    emit: tuple[Statistic, ...],
) -> tuple[torch.Tensor, torch.Tensor, WindowScores]:
    """Mean and variance, and whatever else was asked for."""
    shape = (blocks.batch, blocks.kv_heads, scored)
    mean, variance = (log_sum_exp.new_zeros(shape) for _ in range(2))
    maximum = log_sum_exp.new_zeros(shape) if "maximum" in emit else None
    token_entropy = log_sum_exp.new_zeros(shape) if "entropy" in emit else None
    entropy, total_variance = (log_sum_exp.new_zeros(blocks.batch, dtype=torch.float64) for _ in range(2))
    counts = log_sum_exp.new_full((blocks.batch,), blocks.window)
    weight = None
    if valid_queries is not None:
        counts = valid_queries.sum(1).to(blocks.compute)
        weight = valid_queries[:, None, None, :, None].to(blocks.compute)
    divisor = counts.clamp(min=1).view(-1, 1, 1, 1, 1)
    freedom = (counts - 1).clamp(min=1).view(-1, 1, 1, 1)
    # A padding query sees nothing: its log-sum-exp is -inf and must not turn p into NaN.
    log_sum_exp = log_sum_exp.masked_fill(log_sum_exp == float("-inf"), 0.0)
    for start, end, logits in blocks(scored):
        log_p = logits.sub_(log_sum_exp)
        p = log_p.exp() if weight is None else log_p.exp().mul_(weight)
        finite = log_p.clamp_(min=-1e30)  # an invisible key (p = 0, log p = -inf) adds nothing
        entropy -= torch.linalg.vecdot(p.flatten(1), finite.flatten(1)).double()
        if token_entropy is not None:
            token_entropy[..., start:end] = finite.mul_(p).sum((2, 3)).neg_()
        block_mean = p.sum(3, keepdim=True).div_(divisor)
        mean[..., start:end] = block_mean.squeeze(3).mean(2)
        if maximum is not None:
            maximum[..., start:end] = p.amax((2, 3))
        deviation = p.sub_(block_mean) if weight is None else p.sub_(block_mean).mul_(weight)
        block_variance = deviation.square_().sum(3).div_(freedom)
        variance[..., start:end] = block_variance.mean(2)
        total_variance += block_variance.sum((1, 2, 3), dtype=torch.float64)
    total_variance = total_variance.masked_fill(counts < 2, float("nan"))
    found = WindowScores(
        score=None,
        mean=None,
        variance=None,
        maximum=maximum,
        token_entropy=token_entropy,
        entropy=entropy.to(mean.dtype),
        total_variance=total_variance.to(mean.dtype),
    )
    return mean, variance, found

"""The statistics of docs/formats.md from a whole attention matrix in float64, by their definitions."""

from __future__ import annotations

import math

import torch


def softmax_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    visible: torch.Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """``[query_heads, queries, keys]`` of query ``[query_heads, queries, dim]``, key ``[kv_heads, keys, dim]``."""
    key = key.double().repeat_interleave(query.shape[0] // key.shape[0], 0)
    logits = query.double() @ key.transpose(1, 2) * scaling
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.masked_fill(~visible, -math.inf)
    if sinks is None:
        return logits.softmax(-1)
    column = sinks.double().view(-1, 1, 1).expand(*logits.shape[:2], 1)
    return torch.cat([logits, column], -1).softmax(-1)[..., :-1]


def statistics(
    p: torch.Tensor,
    visible: torch.Tensor,
    query_positions: list[int],
    *,
    tokens: int,
    prompt: int,
    sink: int,
    recent: int,
) -> dict[str, torch.Tensor]:
    """Means over queries of each statistic, ``[query_heads, ...]``.

    Args:
        p: float64 ``[query_heads, queries, tokens]`` by position.
        visible: bool ``[query_heads, queries, tokens]``.
        query_positions: of the queries.
        tokens: tokens seen.
        prompt: tokens of the prompt.
        sink: first tokens that count as sinks.
        recent: nearest tokens that count as recent.
    """
    rows = [[_of_row(p[h, i], visible[h, i], at, tokens, prompt, sink, recent) for i, at in enumerate(query_positions)]
            for h in range(p.shape[0])]  # fmt: skip
    names = rows[0][0].keys()
    return {n: torch.stack([torch.stack([r[n] for r in head]).mean(0) for head in rows]) for n in names}


def _of_row(
    p: torch.Tensor, visible: torch.Tensor, at: int, tokens: int, prompt: int, sink: int, recent: int
) -> dict[str, torch.Tensor]:
    seen = p[visible]
    count = seen.numel()
    entropy = -sum(x * math.log(x) for x in seen.tolist() if x > 0)
    position, distance = torch.zeros(64, dtype=torch.float64), torch.zeros(33, dtype=torch.float64)
    for place, mass in enumerate(p.tolist()):
        position[place * 64 // tokens] += mass
        gap = abs(at - place)
        distance[0 if gap == 0 else gap.bit_length()] += mass
    ordered = sorted(seen.tolist(), reverse=True)
    coverage = []
    for share in (0.5, 0.8, 0.9, 0.95, 0.99):
        total, needed = 0.0, 0
        while total < share * float(p.sum()) * (1 - 1e-9) and needed < count:
            total += ordered[needed]
            needed += 1
        coverage.append(needed)

    def number(x: float) -> torch.Tensor:
        return torch.tensor(x, dtype=torch.float64)

    return {
        "entropy": number(entropy),
        "entropy_normalised": number(entropy / math.log(count) if count > 1 else 0.0),
        "maximum": seen.max(),
        "variance": ((seen - seen.mean()) ** 2).mean(),
        "density": number(sum(x > 1 / count for x in seen.tolist()) / count),
        "sink_mass": p[:sink].sum(),
        "recent_mass": number(sum(m for i, m in enumerate(p.tolist()) if abs(at - i) < recent)),
        "diagonal_mass": p[at],
        "prompt_mass": p[:prompt].sum(),
        "coverage": torch.tensor(coverage, dtype=torch.float64),
        "position_mass": position,
        "distance_mass": distance,
    }

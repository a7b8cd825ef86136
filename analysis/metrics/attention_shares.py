"""Where a query's attention goes: to the first tokens, to near ones, to itself.

All take probabilities ``[..., queries, keys]`` with keys at positions 0 to ``keys - 1``, return the mass
``[..., queries]``, in [0, 1], and sum it over the keys that they name. Queries are the last of the keys unless
``first_query`` says where they begin.
"""

from __future__ import annotations

import torch

from kvcompress.analysis.metrics.inputs import checked_attention, query_positions


def sink_share(attention: torch.Tensor, sink_tokens: int = 4) -> torch.Tensor:
    """Mass on the sequence's first tokens: ``Σ_{j < sink_tokens} p_j``.

    Source: Xiao et al., Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453, section 3.1.

    Raises:
        ValueError: ``sink_tokens`` below 0.
    """
    _check_count("sink_tokens", sink_tokens)
    return checked_attention(attention)[..., :sink_tokens].sum(-1)


def recent_share(attention: torch.Tensor, recent_tokens: int = 32, first_query: int | None = None) -> torch.Tensor:
    """Mass on keys less than ``recent_tokens`` away from the query: ``Σ_{|i - j| < recent_tokens} p_j``.

    Raises:
        ValueError: ``recent_tokens`` below 0.
    """
    _check_count("recent_tokens", recent_tokens)
    values = checked_attention(attention)
    return (values * (distances(attention, first_query) < recent_tokens)).sum(-1)


def diagonal_share(attention: torch.Tensor, first_query: int | None = None) -> torch.Tensor:
    """Mass on the query's own position: ``p_i``."""
    return recent_share(attention, 1, first_query)


def distances(attention: torch.Tensor, first_query: int | None = None) -> torch.Tensor:
    """Tokens between each query and each key, either way: int64 ``[queries, keys]``, at least 0."""
    queries, keys = attention.shape[-2:]
    positions = query_positions(queries, keys, first_query)[:, None]
    return (positions - torch.arange(keys)).abs().to(attention.device)


def _check_count(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"{name} must be at least 0; got {value}")

"""Keys and values of a sample: how empty they are, by layer, head, token and embedding dimension."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch

from kvcompress.analysis.metrics.cache_sparsity import dimension_consistency, pruning_potential
from kvcompress.analysis.metrics.top import largest
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import POSITION_BINS, SPARSITY_THRESHOLDS, TOKEN_SPARSITY_THRESHOLD

What = Literal["key", "value"]
BOTH: tuple[What, What] = ("key", "value")


class Potential(NamedTuple):
    """Share of each head's parts that can go while 99 % of its energy stays: float64 ``[L, K]``.

    Attributes:
        dimensions: of its embedding dimensions.
        tokens: of its tokens.
    """

    dimensions: torch.Tensor
    tokens: torch.Tensor


def potential(sample: Sample, what: What, keep_percent: float = 99.0) -> Potential:
    """:func:`kvcompress.analysis.metrics.cache_sparsity.pruning_potential` of a sample's keys or values."""
    norms = sample.tensor(f"kv.{what}_norm").double().nan_to_num()  # NaN: a token that was not seen has no energy
    return Potential(
        dimensions=pruning_potential(sample.tensor(f"kv.{what}_energy").nan_to_num(), keep_percent),
        tokens=pruning_potential(norms.square(), keep_percent),
    )


def consistency(sample: Sample, what: What) -> torch.Tensor:
    """How alike all heads of all layers are in each dimension's sparsity: float64 ``[D]``, in [0, 1]."""
    return dimension_consistency(sample.tensor(f"kv.{what}_dimension_sparsity").flatten(0, 1))


def by_position(sample: Sample, name: str, bins: int = POSITION_BINS) -> torch.Tensor:
    """Mean of a tensor ``[L, K, T]`` over layers, heads and the tokens of each position bin: float64 ``[bins]``.

    Bin of position ``x`` is ``x · bins // T``; NaN for a bin without tokens.
    """
    by_token = sample.tensor(name).double().flatten(0, 1).nanmean(0)
    places = torch.arange(len(by_token)) * bins // max(len(by_token), 1)
    there = ~by_token.isnan()
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, places[there], by_token[there])
    return sums / torch.bincount(places[there], minlength=bins)


def section(sample: Sample) -> dict[str, Any]:
    """What a report says about keys and values."""
    return {
        "thresholds": SPARSITY_THRESHOLDS,
        "token_and_dimension_threshold": TOKEN_SPARSITY_THRESHOLD,
        "layers": {"layer": sample.summary.layer_indices} | _named(_layers, sample),
        "heads": _named(_heads, sample),
        "tokens": _named(_tokens, sample),
        "embeddings": _named(_embeddings, sample),
    }


def _named(part: Any, sample: Sample) -> dict[str, Any]:
    return {f"{what}_{name}": value for what in BOTH for name, value in part(sample, what).items()}


def _layers(sample: Sample, what: What) -> dict[str, torch.Tensor]:
    room = potential(sample, what)
    return {
        "sparsity": sample.tensor(f"kv.{what}_sparsity").double().nanmean(1),
        "norm": sample.tensor(f"kv.{what}_norm").double().flatten(1).nanmean(1),
        "dimension_pruning_potential": room.dimensions.nanmean(1),
        "token_pruning_potential": room.tokens.nanmean(1),
    }


def _heads(sample: Sample, what: What) -> dict[str, torch.Tensor]:
    room = potential(sample, what)
    return {
        "sparsity": sample.tensor(f"kv.{what}_sparsity")[..., SPARSITY_THRESHOLDS.index(TOKEN_SPARSITY_THRESHOLD)],
        "norm": sample.tensor(f"kv.{what}_norm").double().nanmean(2),
        "dimension_pruning_potential": room.dimensions,
        "token_pruning_potential": room.tokens,
    }


def _tokens(sample: Sample, what: What) -> dict[str, Any]:
    sparsity = sample.tensor(f"kv.{what}_token_sparsity").double().flatten(0, 1).nanmean(0)
    return {
        "norm_by_position": by_position(sample, f"kv.{what}_norm"),
        "sparsity_by_position": by_position(sample, f"kv.{what}_token_sparsity"),
        "most_sparse": largest(sparsity, sample.summary.tokens, "sparsity"),
    }


def _embeddings(sample: Sample, what: What) -> dict[str, torch.Tensor]:
    energy = sample.tensor(f"kv.{what}_energy").double()
    shares = energy / energy.sum(2, keepdim=True)
    return {
        "sparsity": sample.tensor(f"kv.{what}_dimension_sparsity").double().flatten(0, 1).nanmean(0),
        "consistency": consistency(sample, what),
        "energy_share": shares.flatten(0, 1).nanmean(0),
    }

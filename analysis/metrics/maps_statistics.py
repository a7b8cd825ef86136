"""Statistics of one layer's maps over steps, batch, heads and queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

import torch

from kvcompress.analysis.metrics import attention, attention_shares
from kvcompress.analysis.metrics.attention_layers import trend
from kvcompress.analysis.metrics.attention_maps import StepMap
from kvcompress.analysis.metrics.inputs import visible_keys
from kvcompress.analysis.metrics.step_change import change

# Each takes probabilities [batch, heads, queries, keys] and the keys seen, and returns [batch, heads, queries].
STATISTICS: Final[dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "mean": attention.mean,
    "entropy": lambda p, _: attention.entropy(p),
    "entropy_normalised": attention.entropy_normalised,
    "variance": attention.variance,
    "maximum": lambda p, _: attention.maximum(p),
    "density": attention.density,
    "positions_for_90_percent": lambda p, _: attention.positions_for(p, 90).to(p.dtype),
}
SHARES: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "sink": attention_shares.sink_share,
    "recent": attention_shares.recent_share,
    "diagonal": attention_shares.diagonal_share,
}


def spread(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean, population standard deviation, least and largest of all values."""
    wide = values.double()
    return {"mean": wide.mean(), "std": wide.std(correction=0), "min": wide.min(), "max": wide.max()}


def of_queries(captures: Sequence[StepMap], name: str) -> torch.Tensor:
    """A statistic of every query of every map: ``[queries of all maps, batch and heads]``."""
    function = STATISTICS[name]
    return torch.cat([function(capture.attention, visible_keys(capture.attention)).flatten() for capture in captures])


def statistics(captures: Sequence[StepMap]) -> dict[str, dict[str, torch.Tensor]]:
    """Every statistic, spread over all queries."""
    return {name: spread(of_queries(captures, name)) for name in STATISTICS}


def focus(captures: Sequence[StepMap]) -> torch.Tensor:
    """One over the mean entropy, in 1 / nats."""
    return 1 / of_queries(captures, "entropy").double().mean()


def shares(captures: Sequence[StepMap]) -> dict[str, torch.Tensor] | None:
    """Mean mass on sinks, recent tokens and the diagonal; None where there are more queries than keys."""
    if any(capture.attention.shape[-2] > capture.attention.shape[-1] for capture in captures):
        return None
    return {
        name: torch.cat([share(capture.attention).flatten() for capture in captures]).double().mean()
        for name, share in SHARES.items()
    }


def by_head(captures: Sequence[StepMap]) -> dict[str, torch.Tensor] | None:
    """Every statistic by head, mean over steps, batch and queries: ``[heads]``; None where steps differ in heads."""
    if len({capture.attention.shape[1] for capture in captures}) > 1:
        return None
    found = {}
    for name, function in STATISTICS.items():
        rows = [function(c.attention, visible_keys(c.attention)).transpose(0, 1).flatten(1) for c in captures]
        found[name] = torch.cat(rows, dim=1).double().mean(1)
    return found


def evolution(captures: Sequence[StepMap]) -> dict[str, Any]:
    """Every statistic at each step, its trend, and the mass that moved from each step to the next."""
    steps = torch.tensor([capture.step for capture in captures])
    series = {name: torch.stack([of_queries([c], name).double().mean() for c in captures]) for name in STATISTICS}
    return {
        "steps": steps,
        "metrics": series,
        "trend": {name: trend(values, steps)._asdict() for name, values in series.items()},
        "moved_to_next": [_moved(before, after) for before, after in pairwise(captures)],
    }


def mean_map(captures: Sequence[StepMap]) -> torch.Tensor:
    """Mean over steps, batch and heads: float64 ``[queries, keys]``."""
    return torch.stack([capture.attention.double().mean((0, 1)) for capture in captures]).mean(0)


def shapes(captures: Sequence[StepMap]) -> list[list[int]]:
    """The different shapes of a layer's maps, in the order in which they came."""
    return [list(shape) for shape in dict.fromkeys(tuple(capture.attention.shape) for capture in captures)]


def _moved(before: StepMap, after: StepMap) -> torch.Tensor | None:
    """Mean total variation from one step to the next; None where the shapes differ."""
    if before.attention.shape != after.attention.shape:
        return None
    return change(before.attention, after.attention).total_variation.double().mean()

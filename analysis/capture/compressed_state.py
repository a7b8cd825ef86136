"""What a compressed cache says of itself, in a form that goes into a sample."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch

from kvcompress.analysis.capture.sample_capture import CompressedState
from kvcompress.engine.cache import CompressedCache
from kvcompress.policies.base import Policy


def compressed_state(cache: CompressedCache, row: int, batch: int) -> CompressedState:
    """The state of one sequence.

    Args:
        cache: the cache, after a pass.
        row: which sequence.
        batch: sequences that it holds.
    """
    layers = {}
    for layer in cache.compressed_layers:
        statistics = layer.statistics
        if statistics is not None:
            layers[layer.layer_idx] = (
                int(statistics.budget[row]),
                _number(statistics.preference, row),
                _number(statistics.entropy, row),
                _number(statistics.variance, row),
            )
    return CompressedState(policy=policy_parameters(cache.policy), num_bytes=cache.num_bytes // batch, layers=layers)


def policy_parameters(policy: Policy) -> dict[str, Any]:
    """Name and parameters of a policy, JSON-able."""
    return {"name": policy.name, **{field.name: _plain(getattr(policy, field.name)) for field in fields(policy)}}


def _plain(value: Any) -> Any:
    if isinstance(value, Policy):
        return policy_parameters(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _number(values: torch.Tensor | None, row: int) -> float:
    return float("nan") if values is None else float(values[row])

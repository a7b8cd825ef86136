"""What a compressed cache says of itself, in a form that goes into a sample."""

from __future__ import annotations

import torch

from kvcompress.analysis.capture.sample_capture import CompressedState
from kvcompress.engine.cache import CompressedCache
from kvcompress.policies.describe import policy_parameters


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


def _number(values: torch.Tensor | None, row: int) -> float:
    return float("nan") if values is None else float(values[row])

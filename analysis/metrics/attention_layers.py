"""Layers beside each other, and attention over the steps of a run."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Trend(NamedTuple):
    """How a value went over the steps of a run; all have the shape of one step.

    Attributes:
        first: at the first step.
        last: at the last step.
        change: ``last - first``.
        slope: least-squares slope, per step; NaN of a single step.
    """

    first: torch.Tensor
    last: torch.Tensor
    change: torch.Tensor
    slope: torch.Tensor


def layer_similarity(layers: torch.Tensor) -> torch.Tensor:
    """Cosine similarity between the layers' attention: ``<a, b> / (|a| |b|)``.

    Range: [0, 1] for probabilities, 1 on the diagonal; NaN for a layer without any mass.

    Args:
        layers: ``[layers, ...]``: maps, or mass per token, of the same shape for every layer.

    Returns:
        ``[layers, layers]``, symmetric, in at least float32.

    Raises:
        ValueError: no layer, nothing in a layer, or values that are not finite.
    """
    if layers.ndim < 2 or layers.numel() == 0:
        raise ValueError(f"layers must be [layers, ...] with at least one value each; got shape {tuple(layers.shape)}")
    values = layers.flatten(1)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("layers must be finite; some values are NaN or infinite. Leave those places out.")
    values = values if values.dtype == torch.float64 else values.float()
    norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    unit: torch.Tensor = values / norms  # NaN for a layer of zeros: it has no direction
    return (unit @ unit.T).clamp(-1, 1)


def trend(values: torch.Tensor, steps: torch.Tensor | None = None) -> Trend:
    """How attention evolved across steps.

    Slope: ``Σ (s - mean s)(v - mean v) / Σ (s - mean s)²`` over the steps ``s``.

    Args:
        values: ``[steps, ...]``, a metric at each step.
        steps: ``[steps]``, the steps' numbers; None: 0, 1, 2, ...

    Raises:
        ValueError: no step, or not one number per step.
    """
    count = len(values)
    if count == 0:
        raise ValueError("values must have at least one step; got none")
    numbers = torch.arange(count) if steps is None else steps
    if numbers.shape != (count,):
        raise ValueError(f"steps must be one number for each of the {count} values; got shape {tuple(numbers.shape)}")
    centred = numbers.double() - numbers.double().mean()
    weights = (centred / centred.square().sum()).reshape(-1, *[1] * (values.ndim - 1))
    slope = (weights * (values.double() - values.double().mean(0))).sum(0).to(values.dtype)
    return Trend(first=values[0], last=values[-1], change=values[-1] - values[0], slope=slope)

"""How empty keys and values are, by layer, head, token and embedding dimension, and what that lets one drop.

Take keys or values ``[..., tokens, head_dim]``, or what a capture reduced them to.
:mod:`kvcompress.analysis.metrics.of_sample.cache` applies them to a capture.
"""

from __future__ import annotations

import torch


def scale(values: torch.Tensor) -> torch.Tensor:
    """Root mean square of a head's entries: ``sqrt(mean x²)``.

    Unit: that of the values. Range: at least 0.

    Args:
        values: keys or values ``[..., tokens, head_dim]``.

    Returns:
        ``[...]``.
    """
    return checked(values).square().mean((-2, -1)).sqrt()


def is_small(values: torch.Tensor, threshold: float, scales: torch.Tensor | None = None) -> torch.Tensor:
    """Entries with magnitude below ``threshold`` times the head's scale: bool, of the values' shape.

    Args:
        values: keys or values ``[..., tokens, head_dim]``.
        threshold: fraction of the scale, at least 0.
        scales: ``[...]``; None: :func:`scale` of the values.

    Raises:
        ValueError: a negative threshold.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, a fraction of the head's scale; got {threshold!r}")
    entries = checked(values)
    limit = threshold * (scale(values) if scales is None else scales)
    return entries.abs() < limit[..., None, None]


def head_sparsity(values: torch.Tensor, threshold: float, scales: torch.Tensor | None = None) -> torch.Tensor:
    """Share of a head's entries that are small (:func:`is_small`): ``[...]``. Range: [0, 1]."""
    return is_small(values, threshold, scales).double().mean((-2, -1))


def layer_sparsity(values: torch.Tensor, threshold: float, scales: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of :func:`head_sparsity` over heads, of ``[..., kv_heads, tokens, head_dim]``: ``[...]``. Range: [0, 1]."""
    return head_sparsity(values, threshold, scales).mean(-1)


def token_sparsity(values: torch.Tensor, threshold: float, scales: torch.Tensor | None = None) -> torch.Tensor:
    """Share of a token's dimensions that are small: ``[..., tokens]``. Range: [0, 1]."""
    return is_small(values, threshold, scales).double().mean(-1)


def dimension_sparsity(values: torch.Tensor, threshold: float, scales: torch.Tensor | None = None) -> torch.Tensor:
    """Share of the tokens in which a dimension is small: ``[..., head_dim]``. Range: [0, 1]."""
    return is_small(values, threshold, scales).double().mean(-2)


def dimension_energy(values: torch.Tensor) -> torch.Tensor:
    """Mean square of each dimension over the tokens: ``[..., head_dim]``. Unit: that of the values, squared."""
    return checked(values).square().mean(-2)


def norms(values: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each token's vector: ``[..., tokens]``. Unit: that of the values."""
    lengths: torch.Tensor = torch.linalg.vector_norm(checked(values), dim=-1)
    return lengths


def dimension_consistency(sparsity: torch.Tensor) -> torch.Tensor:
    """How alike the heads are in a dimension's sparsity: ``1 - 2 · std over heads``.

    Range: 0 (half of the heads all small, half not at all) to 1 (the same in every head); population standard
    deviation, which is at most 1/2 in [0, 1].

    Args:
        sparsity: :func:`dimension_sparsity`, ``[heads, head_dim]`` (of one layer or of all).

    Returns:
        ``[head_dim]``.
    """
    return 1 - 2 * sparsity.double().std(0, correction=0)


def pruning_potential(energy: torch.Tensor, keep_percent: float = 99.0) -> torch.Tensor:
    """Share of the parts that can go while ``keep_percent`` of the energy stays: ``1 - m / n``.

    ``m`` is the fewest parts, largest first, that hold that much. Range: 0 (all are needed) to ``1 - 1 / n``; NaN
    without any energy. A part is a dimension (:func:`dimension_energy`), a token (squared :func:`norms`) or whatever
    else the last axis has. Energy is not quality: what the model loses is measured by pruning it.

    Args:
        energy: ``[..., parts]``, at least 0.
        keep_percent: in (0, 100].

    Returns:
        float64 ``[...]``.

    Raises:
        ValueError: ``keep_percent`` out of range, or energy that is negative or NaN.
    """
    if not 0 < keep_percent <= 100:
        raise ValueError(f"keep_percent must be in (0, 100]; got {keep_percent!r}")
    if not bool((energy >= 0).all()):
        raise ValueError("energy must be at least 0 everywhere; some of it is negative or NaN")
    largest_first = energy.double().sort(-1, descending=True).values
    held = largest_first.cumsum(-1)
    # A share that is reached exactly must not miss it by a rounding.
    wanted = held[..., -1:] * (keep_percent / 100 * (1 - 1e-9))
    needed = ((held < wanted) & (largest_first > 0)).sum(-1) + 1
    share = 1 - needed.clamp(max=energy.shape[-1]).double() / energy.shape[-1]
    return torch.where(held[..., -1] > 0, share, torch.nan)


def checked(values: torch.Tensor) -> torch.Tensor:
    """Keys or values in float64, after a look at them.

    Raises:
        ValueError: not ``[..., tokens, head_dim]`` with at least one of each, or not finite.
    """
    if values.ndim < 2 or values.numel() == 0:
        raise ValueError(
            "keys and values must be [..., tokens, head_dim] with at least one of each; got shape "
            f"{tuple(values.shape)}"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError("keys and values must be finite; some entries are NaN or infinite")
    return values.detach().double()

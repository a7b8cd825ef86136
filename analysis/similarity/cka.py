"""Linear CKA: how far two representations of the same tokens agree, whatever their rotation and scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_MOST_GRAM_TOKENS = 512  # up to which a matrix [tokens, tokens] of each representation is held


def linear_cka(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Linear centred kernel alignment of each pair: ``‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖)`` of centred ``X`` and ``Y``.

    Args:
        features: each ``[tokens, dim]`` of the same tokens; dimensions may differ.

    Returns:
        float64 ``[n, n]`` in [0, 1]; 0 where a representation is the same for every token.

    Raises:
        ValueError: none, another number of axes, or different numbers of tokens.

    Source:
        Kornblith et al., Similarity of Neural Network Representations Revisited, arXiv 1905.00414.
    """
    if not features or any(each.dim() != 2 for each in features) or len({len(each) for each in features}) > 1:
        raise ValueError(
            "features must be matrices [tokens, dim] of the same tokens, at least one; got "
            f"{[list(each.shape) for each in features]}"
        )
    centred = [_scaled(each.detach().double()) for each in features]
    products = _by_tokens(centred) if len(centred[0]) <= _MOST_GRAM_TOKENS else _by_features(centred)
    norms = products.diagonal().sqrt()
    scale = norms[:, None] * norms
    return (products / scale.masked_fill(scale == 0, 1)).clamp(0, 1)


def _by_tokens(centred: Sequence[torch.Tensor]) -> torch.Tensor:
    """``‖Yᵀ X‖²`` of each pair as the inner product of Gram matrices ``[tokens, tokens]``: cheap for many pairs."""
    grams = torch.stack([(each @ each.T).flatten().cpu() for each in centred])
    products = grams @ grams.T
    return (products + products.T) / 2  # a blocked product need not be symmetric in the last bit


def _by_features(centred: Sequence[torch.Tensor]) -> torch.Tensor:
    """``‖Yᵀ X‖²`` of each pair, a pair at a time: memory does not grow with the tokens."""
    count = len(centred)
    products = torch.zeros(count, count, dtype=torch.float64)
    for row in range(count):
        for column in range(row, count):
            product = (centred[column].T @ centred[row]).square().sum()
            products[row, column] = products[column, row] = product
    return products


def _scaled(matrix: torch.Tensor) -> torch.Tensor:
    """Centred, and of norm 1, so that fourth powers neither overflow nor vanish; zero where all rows are equal."""
    centred = matrix - matrix.mean(0)
    norm = torch.linalg.matrix_norm(centred)
    rounding = torch.linalg.matrix_norm(matrix) * torch.finfo(matrix.dtype).eps * 8
    return torch.zeros_like(centred) if bool(norm <= rounding) else centred / norm

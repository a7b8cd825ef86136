"""How alike the tokens, heads and layers of a cache are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvcompress.analysis.factorisation.layer_states import TARGETS, LayerStates, Target
from kvcompress.analysis.similarity.cka import linear_cka
from kvcompress.analysis.similarity.cosine import (
    cosine_matrix,
    head_cosine,
    layer_cosine,
    mean_cosine,
    token_vectors,
)
from kvcompress.analysis.similarity.redundancy import redundancy
from kvcompress.analysis.similarity.spacing import evenly_spaced

MOST_TOKENS = 128  # rows of a token matrix
THRESHOLDS = (0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerSimilarity:
    """Similarities within one layer's keys or values.

    Attributes:
        layer: index in the model.
        target: ``"keys"`` or ``"values"``.
        token_cosine: float64 ``[n, n]`` of the tokens shown, heads side by side.
        mean_token_cosine: over all pairs of different tokens of the text; None where there are none.
        head_cosine: float64 ``[kv_heads, kv_heads]`` of the flattened heads.
        head_cka: float64 ``[kv_heads, kv_heads]``.
        thresholds: of the redundancy.
        redundancy: share of all tokens whose nearest other one has a cosine above each threshold.
    """

    layer: int
    target: Target
    token_cosine: torch.Tensor
    mean_token_cosine: float | None
    head_cosine: torch.Tensor
    head_cka: torch.Tensor
    thresholds: tuple[float, ...]
    redundancy: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as in ``similarity.json``."""
        return {
            "layer": self.layer,
            "target": self.target,
            "token_cosine": rounded(self.token_cosine),
            "mean_token_cosine": self.mean_token_cosine,
            "head_cosine": rounded(self.head_cosine),
            "head_cka": rounded(self.head_cka),
            "redundancy": [
                {"threshold": threshold, "share": share}
                for threshold, share in zip(self.thresholds, self.redundancy, strict=True)
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CacheSimilarity:
    """Similarities of a text's cache.

    Attributes:
        token_positions: int64 ``[n]``, the tokens that the matrices show, evenly spaced.
        most_tokens: how many they may be.
        layers: each layer's keys and values.
        layer_indices: of the matrices between layers.
        layer_cosine: by target, float64 ``[L, L]``; None where the layers' shapes differ.
        layer_cka: by target, float64 ``[L, L]``.
    """

    token_positions: torch.Tensor
    most_tokens: int
    layers: tuple[LayerSimilarity, ...]
    layer_indices: tuple[int, ...]
    layer_cosine: dict[Target, torch.Tensor | None]
    layer_cka: dict[Target, torch.Tensor]

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as in ``similarity.json``."""
        between = {}
        for target in TARGETS:
            cosine = self.layer_cosine[target]
            between[target] = {
                "cosine": None if cosine is None else rounded(cosine),
                "cka": rounded(self.layer_cka[target]),
            }
        return {
            "token_positions": self.token_positions.tolist(),
            "most_tokens": self.most_tokens,
            "layers": [layer.to_json() for layer in self.layers],
            "layer_indices": list(self.layer_indices),
            "between_layers": between,
        }


def layer_similarity(
    states: LayerStates,
    target: Target,
    *,
    most_tokens: int = MOST_TOKENS,
    thresholds: Sequence[float] = THRESHOLDS,
) -> LayerSimilarity:
    """Compares the tokens, and the heads, of one layer's keys or values.

    Args:
        states: the layer.
        target: ``"keys"`` or ``"values"``.
        most_tokens: rows of the token matrix at most, evenly spaced tokens.
        thresholds: cosines above which a token counts as redundant.

    Raises:
        ValueError: values that are not finite, or a number out of range.
    """
    tensor = states.of(target)
    vectors = token_vectors(tensor)  # [T, K * D]
    shown = evenly_spaced(len(vectors), most_tokens)
    return LayerSimilarity(
        layer=states.layer,
        target=target,
        token_cosine=cosine_matrix(vectors[shown.to(vectors.device)]).cpu(),
        mean_token_cosine=mean_cosine(vectors),
        head_cosine=head_cosine(tensor).cpu(),
        head_cka=linear_cka(list(tensor)),
        thresholds=tuple(thresholds),
        redundancy=tuple(redundancy(vectors, thresholds)),
    )


def cache_similarity(
    layers: Sequence[LayerStates],
    *,
    most_tokens: int = MOST_TOKENS,
    thresholds: Sequence[float] = THRESHOLDS,
) -> CacheSimilarity:
    """Compares the tokens, heads and layers of a text's cache.

    Args:
        layers: the layers, at least one, all of the same tokens.
        most_tokens: rows of a token matrix at most, evenly spaced tokens.
        thresholds: cosines above which a token counts as redundant.

    Raises:
        ValueError: no layers, values that are not finite, or a number out of range.
    """
    if not layers:
        raise ValueError("layers must hold at least one layer; got none")
    within = [
        layer_similarity(states, target, most_tokens=most_tokens, thresholds=thresholds)
        for states in layers
        for target in TARGETS
    ]
    return CacheSimilarity(
        token_positions=evenly_spaced(layers[0].keys.shape[1], most_tokens),
        most_tokens=most_tokens,
        layers=tuple(within),
        layer_indices=tuple(states.layer for states in layers),
        layer_cosine={target: _cpu(layer_cosine([each.of(target) for each in layers])) for target in TARGETS},
        layer_cka={target: linear_cka([token_vectors(each.of(target)) for each in layers]) for target in TARGETS},
    )


def rounded(matrix: torch.Tensor) -> list[list[float]]:
    """A matrix for JSON: five decimals, which is more than a page can show and a third of the bytes."""
    return [[round(value, 5) for value in row] for row in matrix.tolist()]


def _cpu(matrix: torch.Tensor | None) -> torch.Tensor | None:
    return None if matrix is None else matrix.cpu()

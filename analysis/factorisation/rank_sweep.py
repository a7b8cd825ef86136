"""Error over rank: one layer's keys or values at several fractions of each mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvcompress.analysis.factorisation.layer_states import LayerStates, Target
from kvcompress.analysis.factorisation.ranks import ranks_at
from kvcompress.analysis.factorisation.svd import SvdBaseline
from kvcompress.analysis.factorisation.tucker import decompose

FRACTIONS = (0.125, 0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPoint:
    """One decomposition of a sweep.

    Attributes:
        layer: index in the model.
        target: ``"keys"`` or ``"values"``.
        fraction: of the token and the embedding mode that the ranks are, as far as the tensor can have them.
        token_rank: rank of the token mode.
        embedding_rank: rank of the embedding mode.
        head_rank: rank of the head mode; None: left as it is.
        relative_error: ``‖X − X̂‖ / ‖X‖``.
        compression_ratio: fraction of the bytes REMOVED; negative where the factors hold more.
        num_bytes: bytes of core and factors.
        full_bytes: bytes of the tensor.
        svd_relative_error: the better SVD's at no more bytes; None where not even rank 1 fits.
    """

    layer: int
    target: Target
    fraction: float
    token_rank: int
    embedding_rank: int
    head_rank: int | None
    relative_error: float
    compression_ratio: float
    num_bytes: int
    full_bytes: int
    svd_relative_error: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as in ``tucker.json``."""
        return {
            "layer": self.layer,
            "target": self.target,
            "fraction": self.fraction,
            "token_rank": self.token_rank,
            "embedding_rank": self.embedding_rank,
            "head_rank": self.head_rank,
            "relative_error": self.relative_error,
            "compression_ratio": self.compression_ratio,
            "bytes": self.num_bytes,
            "full_bytes": self.full_bytes,
            "svd_relative_error": self.svd_relative_error,
        }


def rank_sweep(
    states: LayerStates, target: Target, *, fractions: Sequence[float] = FRACTIONS, head_rank: int | None = None
) -> list[RankPoint]:
    """Decomposes one layer's keys or values at each fraction.

    Args:
        states: the layer.
        target: ``"keys"`` or ``"values"``.
        fractions: of the token and the embedding mode, each in (0, 1].
        head_rank: rank of the head mode; None leaves it as it is.

    Raises:
        ValueError: a fraction or the head rank is out of range, or values are not finite.
    """
    tensor = states.of(target)
    baseline = SvdBaseline(tensor)
    points = []
    for fraction in fractions:
        found = decompose(tensor, ranks_at(baseline.shape, fraction, head_rank))
        points.append(
            RankPoint(
                layer=states.layer,
                target=target,
                fraction=fraction,
                token_rank=found.ranks.token,
                embedding_rank=found.ranks.embedding,
                head_rank=found.ranks.head,
                relative_error=found.relative_error,
                compression_ratio=found.compression_ratio,
                num_bytes=found.num_bytes,
                full_bytes=found.full_bytes,
                svd_relative_error=baseline.best_error(found.num_bytes),
            )
        )
    return points

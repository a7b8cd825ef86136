"""A Tucker decomposition as a page or a plot needs it: figures, and a bounded part of core and factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvcompress.analysis.factorisation.effective_rank import effective_rank, stable_rank
from kvcompress.analysis.factorisation.layer_states import LayerStates, Target
from kvcompress.analysis.factorisation.ranks import Ranks
from kvcompress.analysis.factorisation.svd import SvdBaseline, TruncatedSvd
from kvcompress.analysis.factorisation.tucker import Tucker, decompose
from kvcompress.analysis.similarity.spacing import evenly_spaced

MOST_SHOWN = 64  # rows, and columns, of a core or a factor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Components:
    """One layer's keys or values, decomposed.

    Attributes:
        layer: index in the model.
        target: ``"keys"`` or ``"values"``.
        shape: ``(kv_heads, tokens, head_dim)``.
        tucker: the decomposition.
        joint: SVD of all heads together within the same bytes; None where not even rank 1 fits.
        per_head: SVD of each head, likewise.
        effective_rank: of the matrix ``[tokens, kv_heads · head_dim]``.
        stable_rank: of the same.
    """

    layer: int
    target: Target
    shape: tuple[int, int, int]
    tucker: Tucker
    joint: TruncatedSvd | None
    per_head: TruncatedSvd | None
    effective_rank: float
    stable_rank: float

    def to_json(self, most_shown: int = MOST_SHOWN) -> dict[str, Any]:
        """Figures and a part of the numbers, as in ``tucker.json``.

        Args:
            most_shown: rows and columns of core and factors that are written; rows of factors evenly spaced, else the
                first ones.
        """
        errors = [svd.relative_error for svd in (self.joint, self.per_head) if svd is not None]
        token_rows, embedding_rows = (evenly_spaced(size, most_shown) for size in self.shape[1:])
        head = self.tucker.head
        return {
            "layer": self.layer,
            "target": self.target,
            "shape": list(self.shape),
            "core_shape": list(self.tucker.core.shape),
            "core": self.tucker.core[:most_shown, :most_shown, :most_shown].tolist(),
            "factors": {
                "token": self.tucker.token[token_rows, :most_shown].tolist(),
                "embedding": self.tucker.embedding[embedding_rows, :most_shown].tolist(),
                "head": None if head is None else head[:most_shown, :most_shown].tolist(),
            },
            "token_rows": token_rows.tolist(),
            "embedding_rows": embedding_rows.tolist(),
            "relative_error": self.tucker.relative_error,
            "compression_ratio": self.tucker.compression_ratio,
            "bytes": self.tucker.num_bytes,
            "full_bytes": self.tucker.full_bytes,
            "svd_relative_error": min(errors, default=None),
            "svd": {
                "joint": None if self.joint is None else self.joint.to_json(),
                "per_head": None if self.per_head is None else self.per_head.to_json(),
            },
            "effective_rank": self.effective_rank,
            "stable_rank": self.stable_rank,
        }


def components(states: LayerStates, target: Target, ranks: Ranks) -> Components:
    """Decomposes one layer's keys or values, with the baselines beside it.

    Args:
        states: the layer.
        target: ``"keys"`` or ``"values"``.
        ranks: ranks of the modes.

    Raises:
        ValueError: ranks that the tensor cannot have, or values that are not finite.
    """
    tensor = states.of(target)
    found, baseline = decompose(tensor, ranks), SvdBaseline(tensor)
    values = baseline.singular_values("joint")[0]
    return Components(
        layer=states.layer,
        target=target,
        shape=baseline.shape,
        tucker=found,
        joint=baseline.within("joint", found.num_bytes),
        per_head=baseline.within("per_head", found.num_bytes),
        effective_rank=float(effective_rank(values)),
        stable_rank=float(stable_rank(values)),
    )

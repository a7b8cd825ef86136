"""Truncated SVD at equal bytes: the baseline of a Tucker decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from kvcompress.analysis.factorisation.tucker import checked_states

Form = Literal["joint", "per_head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedSvd:
    """A truncated SVD of a layer's keys or values.

    Attributes:
        form: ``"joint"``, of the matrix ``[tokens, kv_heads · head_dim]``, or ``"per_head"``, of each head's
            ``[tokens, head_dim]``.
        rank: its rank, of each matrix.
        num_bytes: bytes of both factors (singular values multiplied into one of them).
        relative_error: ``‖X − X̂‖ / ‖X‖``; 0 for a zero tensor.
    """

    form: Form
    rank: int
    num_bytes: int
    relative_error: float

    def to_json(self) -> dict[str, Any]:
        """Rank, bytes and error."""
        return {"rank": self.rank, "bytes": self.num_bytes, "relative_error": self.relative_error}


class SvdBaseline:
    """The singular values of a layer's keys or values, from which the error of every rank follows.

    Args:
        tensor: ``[kv_heads, tokens, head_dim]``, any floating dtype, finite.

    Source:
        Eckart and Young, The approximation of one matrix by another of lower rank, Psychometrika 1 (1936).
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        states = checked_states(tensor)
        self.shape = (states.shape[0], states.shape[1], states.shape[2])
        self._itemsize = tensor.element_size()
        joint = states.transpose(0, 1).flatten(1)  # [T, K * D]
        self._values: dict[Form, torch.Tensor] = {
            "joint": torch.linalg.svdvals(joint)[None],  # [1, least of T and K * D]
            "per_head": torch.linalg.svdvals(states),  # [K, least of T and D]
        }

    def singular_values(self, form: Form) -> torch.Tensor:
        """Descending, float64: ``[1, least of tokens and kv_heads · head_dim]``, or ``[kv_heads, least of both]``."""
        return self._values[form]

    def within(self, form: Form, most_bytes: int) -> TruncatedSvd | None:
        """The largest rank that fits, or None where not even rank 1 does.

        Args:
            form: which matrices are decomposed.
            most_bytes: bytes that both factors may take together, in the tensor's own dtype.
        """
        per_rank = self.bytes_per_rank(form)
        rank = min(most_bytes // per_rank, self._values[form].shape[1])
        return self.at(form, rank) if rank >= 1 else None

    def at(self, form: Form, rank: int) -> TruncatedSvd:
        """The truncated SVD of a rank.

        Raises:
            ValueError: the matrix has no such rank.
        """
        squares = self._values[form].square()
        if not 1 <= rank <= squares.shape[1]:
            raise ValueError(f"rank must be in [1, {squares.shape[1]}] for the {form} SVD; got {rank}")
        total = float(squares.sum())
        error = (float(squares[:, rank:].sum()) / total) ** 0.5 if total else 0.0
        return TruncatedSvd(form=form, rank=rank, num_bytes=rank * self.bytes_per_rank(form), relative_error=error)

    def bytes_per_rank(self, form: Form) -> int:
        """Bytes that one rank takes."""
        heads, tokens, head_dim = self.shape
        entries = tokens + heads * head_dim if form == "joint" else heads * (tokens + head_dim)
        return entries * self._itemsize

    def best_error(self, most_bytes: int) -> float | None:
        """The smaller error of the two forms within so many bytes; None where neither fits."""
        fitting = [self.within("joint", most_bytes), self.within("per_head", most_bytes)]
        return min((svd.relative_error for svd in fitting if svd is not None), default=None)

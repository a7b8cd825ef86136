"""Tucker decomposition of a layer's keys or values along tokens, embedding and heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorly
import torch
from tensorly.decomposition import partial_tucker

from kvcompress.analysis.factorisation.ranks import Ranks

_HEAD, _TOKEN, _EMBEDDING = 0, 1, 2
_MOST_ITERATIONS = 25
_TOLERANCE = 1e-6  # change of the relative error between two iterations at which they end


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tucker:
    """A decomposition ``X ≈ core ×₁ head ×₂ token ×₃ embedding``; the factors have orthonormal columns.

    Attributes:
        ranks: the ranks asked for.
        core: float64 ``[head rank, token rank, embedding rank]``.
        head: float64 ``[kv_heads, head rank]``; None: the mode was left as it is.
        token: float64 ``[tokens, token rank]``.
        embedding: float64 ``[head_dim, embedding rank]``.
        relative_error: ``‖X − X̂‖ / ‖X‖`` by reconstruction; 0 for a zero tensor.
        num_bytes: bytes of core and stored factors in the tensor's own dtype.
        full_bytes: bytes of the tensor.
    """

    ranks: Ranks
    core: torch.Tensor
    head: torch.Tensor | None
    token: torch.Tensor
    embedding: torch.Tensor
    relative_error: float
    num_bytes: int
    full_bytes: int

    @property
    def compression_ratio(self) -> float:
        """Fraction of the bytes that is REMOVED; negative where the factors hold more than the tensor."""
        return 1 - self.num_bytes / self.full_bytes

    def reconstruct(self) -> torch.Tensor:
        """The tensor that core and factors stand for: float64 ``[kv_heads, tokens, head_dim]``."""
        return reconstruct(self.core, self.head, self.token, self.embedding)


def decompose(tensor: torch.Tensor, ranks: Ranks, *, iterations: int = _MOST_ITERATIONS) -> Tucker:
    """Decomposes by higher-order orthogonal iteration from the higher-order SVD; nothing is drawn at random.

    Args:
        tensor: ``[kv_heads, tokens, head_dim]``, any floating dtype, finite.
        ranks: ranks of the modes.
        iterations: most iterations; 0 stays with the higher-order SVD.

    Raises:
        ValueError: another number of axes, values that are not finite, ranks that the tensor cannot have, or a negative
            number of iterations.

    Source:
        De Lathauwer, De Moor, Vandewalle, SIAM J. Matrix Anal. Appl. 21 (2000), 1253-1278 and 1324-1342.
    """
    checked = checked_states(tensor)
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0; got {iterations}")
    shape = (checked.shape[0], checked.shape[1], checked.shape[2])
    ranks.check(shape)
    core, head, token, embedding = _factors(checked, ranks, iterations)
    itemsize = tensor.element_size()
    return Tucker(
        ranks=ranks,
        core=core,
        head=head,
        token=token,
        embedding=embedding,
        relative_error=relative_error(checked, reconstruct(core, head, token, embedding)),
        num_bytes=ranks.entries(shape) * itemsize,
        full_bytes=tensor.numel() * itemsize,
    )


def reconstruct(
    core: torch.Tensor, head: torch.Tensor | None, token: torch.Tensor, embedding: torch.Tensor
) -> torch.Tensor:
    """``core ×₁ head ×₂ token ×₃ embedding``; a head factor of None is the identity. ``[kv_heads, tokens, head_dim]``.

    Args:
        core: ``[head rank, token rank, embedding rank]``.
        head: ``[kv_heads, head rank]`` or None.
        token: ``[tokens, token rank]``.
        embedding: ``[head_dim, embedding rank]``.
    """
    mixed = core if head is None else torch.tensordot(head, core, dims=1)
    return token @ mixed @ embedding.T


def relative_error(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """``‖wanted − got‖ / ‖wanted‖`` in float64; 0 where both are zero, infinite where only ``wanted`` is."""
    difference = float(torch.linalg.vector_norm(wanted.double() - got.double()))
    norm = float(torch.linalg.vector_norm(wanted.double()))
    if norm == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / norm


def checked_states(tensor: torch.Tensor) -> torch.Tensor:
    """A layer's keys or values as float64 on the CPU.

    Args:
        tensor: ``[kv_heads, tokens, head_dim]``.

    Raises:
        ValueError: another number of axes, an empty one, or values that are not finite.
    """
    if tensor.dim() != 3 or tensor.numel() == 0:
        raise ValueError(
            f"keys or values must have shape [kv_heads, tokens, head_dim], none of them 0; got {list(tensor.shape)}"
        )
    states = tensor.detach().to(device="cpu", dtype=torch.float64)
    if not bool(torch.isfinite(states).all()):
        raise ValueError("keys or values must be finite; got NaN or infinity. Run the model in a wider dtype.")
    return states


def _factors(
    states: torch.Tensor, ranks: Ranks, iterations: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Core, head factor or None, token and embedding factor of a float64 tensor ``[kv_heads, tokens, head_dim]``."""
    if not bool(states.any()):  # the iteration would divide by its norm
        return _zero_factors(states, ranks)
    modes, sizes = [_TOKEN, _EMBEDDING], [ranks.token, ranks.embedding]
    if ranks.head is not None:
        modes, sizes = [_HEAD, *modes], [ranks.head, *sizes]
    with tensorly.backend_context("numpy", local_threadsafe=True):
        (core, factors), _ = partial_tucker(
            states.numpy(), rank=sizes, modes=modes, n_iter_max=iterations, init="svd", tol=_TOLERANCE, random_state=0
        )
    matrices = [torch.from_numpy(np.ascontiguousarray(factor)) for factor in factors]
    head = matrices[0] if ranks.head is not None else None
    return torch.from_numpy(np.ascontiguousarray(core)), head, matrices[-2], matrices[-1]


def _zero_factors(
    states: torch.Tensor, ranks: Ranks
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    heads, tokens, head_dim = states.shape
    head = None if ranks.head is None else torch.eye(heads, ranks.head, dtype=torch.float64)
    return (
        torch.zeros(ranks.core_shape(heads), dtype=torch.float64),
        head,
        torch.eye(tokens, ranks.token, dtype=torch.float64),
        torch.eye(head_dim, ranks.embedding, dtype=torch.float64),
    )

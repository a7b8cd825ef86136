"""Step 2, *allocate*: budgets of all layers scored so far, recomputed as each layer comes in (the cascade)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kvcompress.engine.layer import CompressedLayer
from kvcompress.errors import CacheStateError
from kvcompress.policies.base import Policy
from kvcompress.policies.protocols import LayerDemand


@dataclass(slots=True)
class ScoredLayer:
    """A layer of the running prefill.

    Attributes:
        layer: the layer.
        device_entropy: float32 ``[batch]``, as its scorer returned it.
        device_variance: likewise.
        available: int64 ``[batch, kv_heads]``, scored tokens that exist (no padding); on the device until fetched.
        present: int64 ``[batch]``, tokens that the layer had before it was compressed, window included, no padding.
        tokens: int64 ``[batch]``, tokens of each sequence seen so far, evicted ones included, no padding.
        entropy: per batch row, once fetched; None where the scorer gives none.
        variance: likewise.
        device_ladder: float32 ``[batch, seats]``, see :meth:`Cascade.ladder`; None where the allocator needs none.
        ladder: per batch row, once fetched, as far as its budget reaches.
        trimmed_to: the budgets that the layer was last cut to; None: not yet.
    """

    layer: CompressedLayer
    device_entropy: torch.Tensor | None
    device_variance: torch.Tensor | None
    available: torch.Tensor
    present: torch.Tensor
    tokens: torch.Tensor
    entropy: list[float] | None = None
    variance: list[float] | None = None
    device_ladder: torch.Tensor | None = None
    ladder: list[NDArray[np.float64]] | None = None
    trimmed_to: list[int] | None = None
    fetched: bool = False


class Cascade:
    """The budgets of one prefill, layer by layer.

    Args:
        policy: whose allocator decides.
        layers: number of compressed layers.
        every: allocate after every ``every`` layers; more than one asks the device less often and holds more meanwhile.
    """

    def __init__(self, policy: Policy, layers: int, every: int) -> None:
        self.policy = policy
        self.layers = layers
        self.every = every
        self.scored: list[ScoredLayer] = []

    @property
    def complete(self) -> bool:
        """Whether every layer has been scored."""
        return len(self.scored) == self.layers

    @property
    def unfinished(self) -> bool:
        """Whether a prefill has begun and not reached the last layer."""
        return bool(self.scored) and not self.complete

    def add(self, entry: ScoredLayer) -> list[list[int]] | None:
        """Adds the next layer (the first one starts a new prefill) and allocates when it is due.

        Returns:
            Budget of each scored layer and batch row, window excluded, ``[layers so far][batch]``; None where this
            layer's turn is put off to a later one (``every > 1``).
        """
        if self.complete:
            self.scored = []
        self.scored.append(entry)
        if not self.complete and len(self.scored) % self.every:
            return None
        self._fetch()
        columns = [self.policy.layer_allocator(demand) for demand in self._demands()]
        budgets = [list(row) for row in zip(*columns, strict=True)]
        for scored, row in zip(self.scored, budgets, strict=True):
            if scored.ladder is not None:  # a budget never grows: what lies beyond will not be asked for again
                scored.ladder = [steps[:budget] for steps, budget in zip(scored.ladder, row, strict=True)]
        return budgets

    def ladder(self, marked: torch.Tensor, seen: int) -> torch.Tensor | None:
        """What each token per head would be worth to a layer, for allocators that compare layers by scores.

        The s-th step is the mean of the s-th best ``kv_heads`` scores of the layer, all heads taken together.

        Args:
            marked: float32 ``[batch, kv_heads, scored]``, ``-inf`` where there is no token, ``+inf`` for sinks.
            seen: tokens seen so far, padding included.

        Returns:
            float32 ``[batch, seats]``, descending; None where the policy's allocator needs none.
        """
        if not self.policy.layer_allocator.needs_ladders:
            return None
        batch, heads, count = marked.shape
        budget = self.policy.budget(seen)
        seats = count if budget is None else min(count, budget * self.layers)
        # NaN counts as the least score of a token that exists.
        scores = marked.masked_fill(marked.isnan(), torch.finfo(marked.dtype).min).flatten(1)
        best = scores.topk(seats * heads, dim=-1).values
        return best.view(batch, seats, heads).mean(-1)

    def limits(self, budgets: list[list[int]]) -> list[list[int | None]]:
        """How far each layer's tokens may grow while decoding, ``[layers][batch]``."""
        allocator = self.policy.layer_allocator
        columns = [allocator.limits(demand, [row[b] for row in budgets]) for b, demand in enumerate(self._demands())]
        return [list(row) for row in zip(*columns, strict=True)]

    def _demands(self) -> list[LayerDemand]:
        """One demand per batch row."""
        demands = []
        caps = [entry.available.sum(1) // entry.available.shape[1] for entry in self.scored]
        for b, tokens in enumerate(self.scored[-1].tokens.tolist()):
            entropy = [entry.entropy[b] for entry in self.scored if entry.entropy is not None]
            variance = [entry.variance[b] for entry in self.scored if entry.variance is not None]
            demands.append(
                LayerDemand(
                    layers=self.layers,
                    budget=self.policy.budget(tokens),
                    entropy=tuple(entropy) if len(entropy) == len(self.scored) else None,
                    variance=tuple(variance) if len(variance) == len(self.scored) else None,
                    caps=tuple(int(cap[b]) for cap in caps),
                    tokens=tokens,
                    window_size=self.policy.window_size,
                    ladders=tuple(entry.ladder[b] for entry in self.scored if entry.ladder is not None) or None,
                )
            )
        return demands

    def _fetch(self) -> None:
        """Brings what the allocator needs of the new layers to the host, in one copy."""
        fresh = [entry for entry in self.scored if not entry.fetched]
        if not fresh:
            return
        parts = [part for entry in fresh for part in self._parts(entry)]
        if any(part.device.type != "cpu" for part in parts):
            device = parts[-1].device
            flat = torch.cat([part.flatten().to(device, torch.float64) for part in parts]).cpu()
            parts = [
                piece.view(part.shape)
                for piece, part in zip(flat.split([p.numel() for p in parts]), parts, strict=True)
            ]
        values = iter(parts)
        for entry in fresh:
            entry.available = next(values).to(torch.int64)
            entry.present = next(values).to(torch.int64)
            entry.tokens = next(values).to(torch.int64)
            if self.policy.layer_allocator.needs_statistics:
                entry.entropy = next(values).double().tolist()
                entry.variance = next(values).double().tolist()
                _check_finite(entry)
            if entry.device_ladder is not None:
                caps = (entry.available.sum(1) // entry.available.shape[1]).tolist()
                steps = next(values).double().numpy()
                entry.ladder = [row[:cap] for row, cap in zip(steps, caps, strict=True)]
                entry.device_ladder = None
            entry.fetched = True

    def _parts(self, entry: ScoredLayer) -> list[torch.Tensor]:
        parts = [entry.available, entry.present, entry.tokens]
        if self.policy.layer_allocator.needs_statistics:
            if entry.device_entropy is None or entry.device_variance is None:
                raise TypeError(
                    f"the layer allocator of policy {self.policy.name!r} needs entropy and variance, and its scorer "
                    "gives none. Return them in LayerScores, or use an allocator that doesn't need them."
                )
            parts += [entry.device_entropy, entry.device_variance]
        return parts if entry.device_ladder is None else [*parts, entry.device_ladder]


def _check_finite(entry: ScoredLayer) -> None:
    for value in entry.entropy or []:
        if value != value or value in (float("inf"), float("-inf")):
            raise CacheStateError(
                f"the attention of layer {entry.layer.layer_idx} is not finite (entropy {value}); the model "
                "overflows in this dtype. Load it in bfloat16 or float32."
            )

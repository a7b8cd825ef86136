"""Step 2, *allocate*: budgets of all layers scored so far, recomputed as further layers come in (the cascade)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from kvcompress.engine.scored import ScoredBlock, ScoredLayer
from kvcompress.errors import CacheStateError
from kvcompress.policies.base import Policy
from kvcompress.policies.protocols import LayerDemand

# Bytes that a prefill on an accelerator may hold beyond its bound, to spare the host waits and launches: once in blocks
# that wait for their budgets, once in tokens that are due to go. Little beside the device's memory, yet four layers of
# an 8k prompt of an 8B model.
SLACK_BYTES: Final = 128 * 2**20


class Cascade:
    """The budgets of one prefill, some layers at a time.

    Args:
        policy: whose allocator decides.
        layers: number of compressed layers.
        every: allocate after every ``every`` layers; None: as soon as the blocks that wait reach ``slack``.
        slack: bytes that may be held beyond the bound, see :data:`SLACK_BYTES`.

    Attributes:
        scored: the layers of the running prefill, or of the last one.
        settled: whether that prefill is over: all layers scored, compacted and cut to their budgets.
    """

    def __init__(self, policy: Policy, layers: int, *, every: int | None, slack: int) -> None:
        self.policy = policy
        self.layers = layers
        self.every = every
        self.slack = slack
        self.scored: list[ScoredLayer] = []
        self.settled = False

    @property
    def complete(self) -> bool:
        """Whether every layer has been scored."""
        return len(self.scored) == self.layers

    @property
    def unfinished(self) -> bool:
        """Whether a prefill has begun and not come to its end."""
        return bool(self.scored) and not self.settled

    @property
    def pending_bytes(self) -> int:
        """Bytes of keys and values of the blocks that wait."""
        return sum(entry.block.num_bytes for entry in self.scored if entry.block is not None)

    def add(self, entry: ScoredLayer) -> None:
        """Adds the next layer; the first one starts a new prefill."""
        if self.settled:
            self.scored, self.settled = [], False
        self.scored.append(entry)

    def is_due(self, block: ScoredBlock) -> bool:
        """Whether it is time to allocate, or the newest layer's block can wait for further ones."""
        if self.complete:
            return True
        if self.every is not None:
            return len(self.scored) % self.every == 0
        return self.pending_bytes + block.num_bytes >= self.slack

    def allocate(self) -> list[list[int]]:
        """Allocates; waits for the device, once, where that knows what the allocator needs.

        Returns:
            Budget of each scored layer and batch row, window excluded, ``[layers so far][batch]``.
        """
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
        """Brings what the allocator needs of the new layers to the host."""
        fresh = [entry for entry in self.scored if not entry.fetched]
        values = iter(_on_host([part for entry in fresh for part in self._parts(entry)]))
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


def slack_bytes(policy: Policy, device: torch.device) -> int:
    """Bytes that a prefill on a device may hold beyond its bound; 0 on the CPU, where nothing runs ahead of the host.

    0 for ``CakeReference`` too: its authors' budgets can grow back, so that every trim decides what is kept.
    """
    return 0 if device.type == "cpu" or policy.decode_rule.storage_order else SLACK_BYTES


def _on_host(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors on the CPU, those of a device as float64: fetched in ONE copy, hence with one wait."""
    away = [part for part in parts if part.device.type != "cpu"]
    if not away:
        return list(parts)
    device = away[-1].device
    flat = torch.cat([part.flatten().to(device, torch.float64) for part in away]).cpu()
    fetched = iter(flat.split([part.numel() for part in away]))
    return [part if part.device.type == "cpu" else next(fetched).view(part.shape) for part in parts]


def _check_finite(entry: ScoredLayer) -> None:
    for value in entry.entropy or []:
        if value != value or value in (float("inf"), float("-inf")):
            raise CacheStateError(
                f"the attention of layer {entry.layer.layer_idx} is not finite (entropy {value}); the model "
                "overflows in this dtype. Load it in bfloat16 or float32."
            )

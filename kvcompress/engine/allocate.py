"""Step 2, *allocate*: budgets of all layers scored so far, recomputed as further layers come in (the cascade)."""

from __future__ import annotations

from functools import cache
from typing import Final

import torch

from kvcompress.engine.fetch import Fetch
from kvcompress.engine.scored import ScoredBlock, ScoredLayer
from kvcompress.errors import CacheStateError
from kvcompress.policies.base import Policy
from kvcompress.policies.protocols import LayerDemand

_SLACK_SHARE: Final = 256  # see `slack_bytes`
_SLACK_ELSEWHERE: Final = 128 * 2**20


class Cascade:
    """The budgets of one prefill, some layers at a time.

    Args:
        policy: whose allocator decides.
        layers: number of compressed layers.
        every: allocate after every ``every`` layers.
        slack: bytes that may be held beyond the bound, see :func:`slack_bytes`.

    Attributes:
        scored: the layers of the running prefill, or of the last one.
        settled: whether that prefill is over: all layers scored, compacted and cut to their budgets.
    """

    def __init__(self, policy: Policy, layers: int, *, every: int, slack: int) -> None:
        self.policy = policy
        self.layers = layers
        self.every = every
        self.slack = slack
        self.scored: list[ScoredLayer] = []
        self.settled = False
        self._fetch: Fetch | None = None
        self._asked: list[ScoredLayer] = []

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
        """Bytes of keys and values of the blocks that wait, for further layers or for the device."""
        return sum(entry.block.num_bytes for entry in self.scored if entry.block is not None)

    def add(self, entry: ScoredLayer) -> None:
        """Adds the next layer; the first one starts a new prefill."""
        if self.settled:
            self.scored, self.settled = [], False
        self.scored.append(entry)

    @property
    def is_due(self) -> bool:
        """Whether it is time to allocate, or the newest layer waits for further ones."""
        return self.complete or len(self.scored) % self.every == 0

    def start_fetch(self) -> None:
        """Starts to fetch what the allocator needs of the new layers, unless a fetch is under way."""
        if self._fetch is None:
            self._asked = [entry for entry in self.scored if not entry.fetched]
            self._fetch = Fetch([part for entry in self._asked for part in self._parts(entry)])

    def may_wait_for_device(self, block: ScoredBlock) -> bool:
        """Whether layers that are due may wait for what is fetched while the device runs the next layer.

        They may where there is something to wait for, another layer to launch meanwhile, and room in the slack.

        Args:
            block: the newest layer's, which does not count as pending yet.
        """
        under_way = self._fetch is not None and self._fetch.under_way
        return under_way and not self.complete and self.pending_bytes + block.num_bytes <= self.slack

    @property
    def has_waited(self) -> bool:
        """Whether layers waited for the device, and are due before the next layer, which has been scored, comes in."""
        return self._fetch is not None

    def allocate(self) -> list[list[int]]:
        """Allocates; waits for the device where that knows what the allocator needs, and has not told yet.

        Returns:
            Budget of each scored layer and batch row, window excluded, ``[layers so far][batch]``.
        """
        self._receive()
        if not self.scored[-1].fetched:  # it came while those before it were fetched
            self.start_fetch()
            self._receive()
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

    def _receive(self) -> None:
        """Takes what has been fetched."""
        if self._fetch is None:
            return
        values = iter(self._fetch.result())
        for entry in self._asked:
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
        self._fetch, self._asked = None, []

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
    """Bytes that a prefill may hold beyond its bound, to spare the host of an accelerator waits and launches.

    They are held once in a block that waits for what the device is asked, and once in tokens that are due to go. A GPU
    gives 1/256 of its memory (0.4 %: 96 MiB of 24 GiB, 560 MiB of 140 GiB): what is spared grows with the slack, and a
    model that fills a GPU has layers in proportion to it. Other accelerators give 128 MiB. The CPU gives nothing,
    since nothing runs ahead of the host there.

    0 for ``CakeReference``, too: its authors' budgets can grow back, so that every trim decides what is kept.

    Args:
        policy: whose prefill.
        device: where the model is.
    """
    if device.type == "cpu" or policy.decode_rule.storage_order:
        return 0
    return _memory(device) // _SLACK_SHARE if device.type == "cuda" else _SLACK_ELSEWHERE


@cache
def _memory(device: torch.device) -> int:
    """Bytes of a GPU's memory."""
    return torch.cuda.get_device_properties(device).total_memory


def _check_finite(entry: ScoredLayer) -> None:
    for value in entry.entropy or []:
        if value != value or value in (float("inf"), float("-inf")):
            raise CacheStateError(
                f"the attention of layer {entry.layer.layer_idx} is not finite (entropy {value}); the model "
                "overflows in this dtype. Load it in bfloat16 or float32."
            )

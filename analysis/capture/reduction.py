"""Reduces a layer's attention to the statistics of docs/formats.md, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvcompress.analysis.capture.observation import Chunk, Observation, probabilities
from kvcompress.analysis.summary.schema import COVERAGE_PERCENT, DISTANCE_BINS, POSITION_BINS, TOP_POSITIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What statistics are taken relative to.

    Attributes:
        tokens: tokens seen after the event; positions are below this.
        prompt_tokens: tokens of the prompt.
        sink_tokens: first tokens whose mass is the sink mass.
        recent_tokens: nearest tokens whose mass is the recent mass.
    """

    tokens: int
    prompt_tokens: int
    sink_tokens: int
    recent_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """A layer's statistics in one event, float32 unless said otherwise.

    Attributes:
        per_head: ``attention.*`` by the rest of its name: ``[query_heads, ...]``.
        keys: keys that a query sees, mean.
        token_mass: ``[tokens]``, mass per position, mean over heads and over observed queries at or after it.
        token_mass_sum: float64 ``[tokens]``, mass per position, sum over observed queries, mean over heads.
        heatmap: ``[query_heads, 64, 64]``; None for a single query.
    """

    per_head: dict[str, torch.Tensor]
    keys: float
    token_mass: torch.Tensor
    token_mass_sum: torch.Tensor
    heatmap: torch.Tensor | None


def reduce_attention(observation: Observation, frame: Frame) -> Reduced:
    """Reduces one layer's attention.

    Args:
        observation: the layer's queries and keys.
        frame: what the statistics are relative to.

    Returns:
        The statistics; means are over the observed queries.
    """
    sums = _Sums(observation, frame)
    for chunk in probabilities(observation):
        sums.add(chunk)
    return sums.result()


class _Sums:
    """Sums over queries, in float64; sums over keys are differences of running sums, since keys are in order."""

    def __init__(self, observation: Observation, frame: Frame) -> None:
        self.observation, self.frame = observation, frame
        heads, group = observation.kv_heads, observation.query_heads // observation.kv_heads
        device = observation.query.device
        self.device, self.shape = device, (heads, group)
        self.scalars: dict[str, torch.Tensor] = {}
        self.keys_seen = torch.zeros((), dtype=torch.float64, device=device)
        self.key_mass = torch.zeros(heads, group, observation.positions.shape[1], dtype=torch.float64, device=device)
        self.heatmap: torch.Tensor | None = None
        if observation.queries > 1:
            self.heatmap = torch.zeros(heads, group, POSITION_BINS, POSITION_BINS, dtype=torch.float64, device=device)
        self.rows_of_bin = torch.zeros(POSITION_BINS, dtype=torch.int64, device=device)
        bins = torch.arange(POSITION_BINS + 1, device=device)
        self.bin_edges = -((-bins * frame.tokens) // POSITION_BINS)  # first position of each bin

    def add(self, chunk: Chunk) -> None:
        """Adds a chunk of queries."""
        seen = chunk.visible.sum(-1)[:, None].to(chunk.p.dtype)  # [K or 1, 1, q]
        running = torch.nn.functional.pad(chunk.p.cumsum(-1, dtype=torch.float64), (1, 0))  # [K, G, q, n + 1]
        self.keys_seen += seen.double().mean((0, 1)).sum()
        for name, values in self._statistics(chunk, seen, running).items():  # each [K, G, q, ...]
            total = values.sum(2, dtype=torch.float64)
            self.scalars[name] = self.scalars[name] + total if name in self.scalars else total
        self.key_mass[..., : chunk.p.shape[-1]] += chunk.p.sum(2, dtype=torch.float64)
        if self.heatmap is not None:
            self._add_heatmap(chunk, running)

    def _statistics(self, chunk: Chunk, seen: torch.Tensor, running: torch.Tensor) -> dict[str, torch.Tensor]:
        p = chunk.p
        entropy = -torch.special.xlogy(p, p).sum(-1)
        several = seen > 1
        centred = (p - (running[..., -1] / seen.clamp(min=1)).to(p.dtype)[..., None]).mul_(chunk.visible[:, None])
        return {
            "entropy": entropy,
            "entropy_normalised": torch.where(several, entropy / seen.clamp(min=2).log(), 0.0),
            "maximum": p.amax(-1) if p.shape[-1] else torch.zeros_like(entropy),
            "variance": centred.square_().sum(-1) / seen.clamp(min=1),
            "density": (p * seen[..., None] > 1).sum(-1) / seen.clamp(min=1),
            "learned_sink_mass": chunk.sink,
            "coverage": _coverage(p, running[..., -1]),
            **_shares(chunk, running, self.frame),
        }

    def _add_heatmap(self, chunk: Chunk, running: torch.Tensor) -> None:
        if self.heatmap is None:
            return
        edges = _mass_below(chunk, running, self.bin_edges.expand(chunk.query_positions.numel(), -1))
        rows = chunk.query_positions * POSITION_BINS // self.frame.tokens
        self.heatmap.index_add_(2, rows, edges.diff(dim=-1))
        self.rows_of_bin += torch.bincount(rows, minlength=POSITION_BINS)

    def result(self) -> Reduced:
        """The means."""
        count = self.observation.observed
        means = {name: self._flat(total / count) for name, total in self.scalars.items()}
        by_position = self._by_position()  # [K, G, tokens], sum over queries
        edges = torch.nn.functional.pad(by_position.cumsum(-1), (1, 0))[..., self.bin_edges]
        means["position_mass"] = self._flat(edges.diff(dim=-1) / count)
        top_mass, top_positions = self._top(by_position / count)
        mass_sum = by_position.mean((0, 1))
        return Reduced(
            per_head={**means, "top_mass": top_mass, "top_positions": top_positions},
            keys=float(self.keys_seen) / count,
            token_mass=(mass_sum / self._observers()).float(),
            token_mass_sum=mass_sum,
            heatmap=self._mean_heatmap(),
        )

    def _flat(self, values: torch.Tensor) -> torch.Tensor:
        return values.flatten(0, 1).float()

    def _by_position(self) -> torch.Tensor:
        """Mass per position, ``[kv_heads, group, tokens]``."""
        positions = self.observation.positions.expand(self.shape[0], -1)
        exists = positions >= 0
        place = positions.clamp(min=0)[:, None].expand(-1, self.shape[1], -1)
        mass = self.key_mass * exists[:, None]
        return mass.new_zeros(*self.shape, self.frame.tokens).scatter_add_(-1, place, mass)

    def _observers(self) -> torch.Tensor:
        """Observed queries that can see each position, at least 1: ``[tokens]``."""
        if not self.observation.causal:
            return torch.tensor(float(self.observation.observed), dtype=torch.float64, device=self.device)
        tokens = torch.arange(self.frame.tokens, device=self.device)
        earlier = torch.searchsorted(self.observation.query_positions, tokens)
        return (self.observation.observed - earlier).clamp(min=1)

    def _top(self, mass: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest masses and their positions, ``[query_heads, 16]``; 0 and -1 where there are fewer."""
        flat = mass.flatten(0, 1)
        count = min(TOP_POSITIONS, flat.shape[-1])
        values, positions = flat.topk(count, dim=-1)
        positions = positions.masked_fill(values <= 0, -1)
        missing = (0, TOP_POSITIONS - count)
        pad = torch.nn.functional.pad
        return pad(values, missing).float(), pad(positions, missing, value=-1)

    def _mean_heatmap(self) -> torch.Tensor | None:
        if self.heatmap is None:
            return None
        rows = self.rows_of_bin[:, None]
        mean = torch.where(rows > 0, self.heatmap / rows.clamp(min=1), float("nan"))
        return mean.flatten(0, 1).float()


def _mass_below(chunk: Chunk, running: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Mass on keys below positions, for each query of a chunk.

    Args:
        chunk: the queries.
        running: float64 ``[kv_heads, group, queries, keys + 1]``, running sums of their probabilities.
        edges: int64 ``[queries, n]``.

    Returns:
        Float64 ``[kv_heads, group, queries, n]``.
    """
    heads, group = running.shape[:2]
    place = torch.searchsorted(chunk.positions.contiguous(), edges.flatten().expand(heads, -1).contiguous())
    return running.gather(-1, place.view(heads, 1, *edges.shape).expand(-1, group, -1, -1))


def _shares(chunk: Chunk, running: torch.Tensor, frame: Frame) -> dict[str, torch.Tensor]:
    """Mass by position and distance."""
    here = chunk.query_positions[:, None]
    powers = 2 ** torch.arange(DISTANCE_BINS, device=here.device)
    recent = here + torch.tensor([1 - frame.recent_tokens, frame.recent_tokens], device=here.device)
    fixed = torch.tensor([frame.sink_tokens, frame.prompt_tokens], device=here.device).expand(here.shape[0], -1)
    mass = _mass_below(chunk, running, torch.cat([here - powers + 1, here + powers, recent, fixed], dim=1))
    before, after, near, first = mass.split([DISTANCE_BINS, DISTANCE_BINS, 2, 2], dim=-1)
    own = after[..., :1] - before[..., :1]
    return {
        "diagonal_mass": own.squeeze(-1),
        "distance_mass": torch.cat([own, after.diff(dim=-1) - before.diff(dim=-1)], dim=-1),
        "recent_mass": near[..., 1] - near[..., 0],
        "sink_mass": first[..., 0],
        "prompt_mass": first[..., 1],
    }


def _coverage(p: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Fewest keys that hold each percentage of the mass on keys: ``[..., 5]``."""
    running = p.sort(dim=-1, descending=True).values.cumsum(-1, dtype=torch.float64)
    shares = torch.tensor(COVERAGE_PERCENT, dtype=torch.float64, device=p.device) / 100
    wanted = total[..., None] * shares * (1 - 1e-9)  # a share that is reached exactly must not miss it by a rounding
    return torch.searchsorted(running, wanted).add_(1).clamp_(max=max(p.shape[-1], 1)).double()

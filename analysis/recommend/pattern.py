"""The pattern of a capture's attention: recency, sparse or uniform, by numbers with thresholds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import PREFILL

PatternName = Literal["recency", "sparse", "uniform"]

LOCAL_MASS = 0.7  # recent and sink mass together, from which on attention is local
FEW_KEYS = 0.25  # share of the keys that hold 90 % of the mass, up to which attention is sparse
_COVERED_PERCENT = 90
_LEAST_KEYS = 4  # times the sink and recent tokens: with fewer keys even attention would look local


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What a capture's attention looks like; means over events, layers and heads.

    Attributes:
        name: ``"recency"`` where ``recent_mass + sink_mass`` is at least ``LOCAL_MASS``; else ``"sparse"`` where
            ``coverage_share`` is at most ``FEW_KEYS``; else ``"uniform"``.
        recent_mass: attention on the nearest tokens, 0 to 1.
        sink_mass: attention on the first tokens, 0 to 1.
        coverage_share: fewest keys that hold 90 % of the mass, over the keys seen, 0 to 1.
        entropy_normalised: entropy over the largest possible one, 0 to 1.
        events: events that were counted.
        recent_tokens: how many tokens are recent.
        sink_tokens: how many are sinks.
        note: what makes the numbers less telling, or None.
    """

    name: PatternName
    recent_mass: float
    sink_mass: float
    coverage_share: float
    entropy_normalised: float
    events: int
    recent_tokens: int
    sink_tokens: int
    note: str | None

    def to_json(self) -> dict[str, Any]:
        """The fields by name, and the thresholds."""
        return asdict(self) | {"thresholds": {"local_mass": LOCAL_MASS, "few_keys": FEW_KEYS}}


def find_pattern(sample: Sample) -> Pattern:
    """Reads the pattern off a sample.

    Args:
        sample: of a capture, compressed or not.

    Raises:
        ValueError: the sample has no event with attention in it.
    """
    settings = sample.summary.settings
    keys = sample.tensor("attention.keys").double()  # [E, L]
    least = _LEAST_KEYS * (settings.recent_tokens + settings.sink_tokens)
    counted, notes = _counted_events(keys, sample.kinds != PREFILL, least)
    if sample.compressed:
        notes.append("the capture was compressed: what had been evicted could not be attended")
    recent, sink = _mean(sample, "recent_mass", counted), _mean(sample, "sink_mass", counted)
    percent = settings.coverage_percent.index(_COVERED_PERCENT)
    covered = sample.tensor("attention.coverage")[counted][..., percent].double()  # [E', L, H]
    share = _finite_mean(covered / keys[counted][..., None].clamp(min=1), "coverage")
    name: PatternName = "recency" if recent + sink >= LOCAL_MASS else "sparse" if share <= FEW_KEYS else "uniform"
    return Pattern(
        name=name,
        recent_mass=recent,
        sink_mass=sink,
        coverage_share=share,
        entropy_normalised=_mean(sample, "entropy_normalised", counted),
        events=int(counted.sum()),
        recent_tokens=settings.recent_tokens,
        sink_tokens=settings.sink_tokens,
        note="; ".join(notes) or None,
    )


def _counted_events(keys: torch.Tensor, single: torch.Tensor, least: int) -> tuple[torch.Tensor, list[str]]:
    """Which events are counted, bool ``[E]``, and what is to be noted about them.

    Decoded tokens see everything that came before; the first queries of a prompt see little but their neighbours.
    """
    seen = keys.nan_to_num(nan=0.0).mean(1)
    enough = seen >= least
    if bool((enough & single).any()):
        return enough & single, []
    if bool(enough.any()):
        note = (
            f"no decoded token sees {least} keys; prompts were counted, whose first queries see their neighbours alone"
        )
        return enough, [note]
    if not bool((seen > 0).any()):
        raise ValueError("the sample has no event with attention in it, so there is no pattern. Capture a longer text.")
    note = (
        f"no event sees the {least} keys from which on local and spread attention can be told apart (at most "
        f"{seen.max():.0f}); all events were counted"
    )
    return seen > 0, [note]


def _mean(sample: Sample, name: str, counted: torch.Tensor) -> float:
    return _finite_mean(sample.tensor(f"attention.{name}")[counted].double(), name)


def _finite_mean(values: torch.Tensor, name: str) -> float:
    finite = values[torch.isfinite(values)]
    if not finite.numel():
        raise ValueError(f"attention.{name} has no finite value, so there is no pattern. Capture again.")
    return float(finite.mean())

"""The space that is searched: one value of each axis is a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from random import Random
from types import MappingProxyType
from typing import Any, Final, get_args

from kvcompress.bench.search.scoring import Attention, Blend, Combination
from kvcompress.policies.base import RuledPolicy
from kvcompress.policies.head_allocators import AdaptiveHeads, EqualHeads
from kvcompress.policies.layer_allocators import GlobalScores, Preference, Pyramid, Uniform
from kvcompress.policies.protocols import HeadAllocator, LayerAllocator, Scorer

LAYERS: Final[Mapping[str, LayerAllocator]] = MappingProxyType(
    {
        "uniform": Uniform(),
        "pyramid": Pyramid(beta=4.0),
        "preference": Preference(tau1=1.0, tau2=1.0),
        "entropy": Preference(tau1=1.0, tau2=100.0),
        "global": GlobalScores(floor=0.2),
    }
)
HEADS: Final[Mapping[str, HeadAllocator]] = MappingProxyType(
    {"equal": EqualHeads(), "adaptive": AdaptiveHeads(floor=0.2), "adaptive_half": AdaptiveHeads(floor=0.5)}
)
AXES: Final[Mapping[str, Sequence[Any]]] = MappingProxyType(
    {
        "attention": get_args(Attention),
        "pool_size": (1, 3, 5, 7),
        "novelty": (0.0, 0.5, 1.0, 2.0, 3.0, 5.0),
        "value": (0.0, 0.5, 1.0, 2.0),
        "novelty_pool": (1, 3, 5),
        "combination": get_args(Combination),
        "layers": tuple(LAYERS),
        "heads": tuple(HEADS),
        "window_size": (2, 4, 8),
        "sink_tokens": (0, 4),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A place in the space; see :class:`~kvcompress.bench.search.scoring.Blend` for the first six axes.

    Attributes:
        layers: a key of :data:`LAYERS`.
        heads: a key of :data:`HEADS`.
        window_size: tokens that are always kept and observe.
        sink_tokens: first tokens that are always kept.
    """

    attention: Attention
    pool_size: int
    novelty: float
    value: float
    novelty_pool: int
    combination: Combination
    layers: str
    heads: str
    window_size: int
    sink_tokens: int

    def policy(self, cache_size: int) -> Composed:
        """The policy at this place with a budget in tokens per layer and head on average."""
        own = {name: getattr(self, name) for name in ("attention", "pool_size", "novelty", "value", "novelty_pool")}
        return Composed(
            cache_size=cache_size,
            window_size=self.window_size,
            sink_tokens=self.sink_tokens,
            decode="accumulate",
            parts=(Blend(**own, combination=self.combination), LAYERS[self.layers], HEADS[self.heads]),
        )

    def neighbours(self) -> list[Point]:
        """All places that differ in one axis, by one step where the axis is a scale."""
        found = []
        for axis, values in AXES.items():
            here = values.index(getattr(self, axis))
            ordered = isinstance(values[0], int | float)
            places = (here - 1, here + 1) if ordered else range(len(values))
            found += [replace(self, **{axis: values[p]}) for p in places if 0 <= p < len(values) and p != here]
        return list(dict.fromkeys(point.plain() for point in found if point.plain() != self.plain()))

    def plain(self) -> Point:
        """The same policy, with axes that have no effect set to their first value."""
        changes: dict[str, Any] = {}
        if not self.novelty and not self.value:
            changes["novelty_pool"] = AXES["novelty_pool"][0]
        return replace(self, **changes)

    def __str__(self) -> str:
        """``axis=value`` of each."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


_BLENDS: Final[tuple[tuple[Combination, float, float, int], ...]] = (
    ("layer", 2.0, 1.0, 5),
    ("layer", 3.0, 1.0, 3),
    ("head", 3.0, 0.0, 5),
    ("head", 3.0, 0.0, 1),
)
_KNOWN: Final[tuple[tuple[Attention, str], ...]] = (
    ("mean", "uniform"),
    ("variance", "preference"),
    ("maximum", "global"),
)
# Places to start from beside those drawn at random: what the published policies score and allocate by (SnapKV, CAKE,
# LayerDefensiveKV), and blends that looked good in first trials on the training tasks.
GUESSES: Final = (
    *(
        Point(
            attention=attention,
            pool_size=5,
            novelty=0.0,
            value=0.0,
            novelty_pool=1,
            combination="head",
            layers=layers,
            heads="adaptive" if layers == "global" else "equal",
            window_size=8,
            sink_tokens=0,
        )
        for attention, layers in _KNOWN
    ),
    *(
        Point(
            attention="mean",
            pool_size=5,
            novelty=novelty,
            value=value,
            novelty_pool=width,
            combination=combination,
            layers="global",
            heads="adaptive_half",
            window_size=4,
            sink_tokens=0,
        )
        for combination, novelty, value, width in _BLENDS
    ),
)


def random_points(count: int, seed: int) -> list[Point]:
    """Different places drawn at random, each value of an axis as likely as the others."""
    rng = Random(seed)
    found: dict[Point, None] = {}
    while len(found) < count:
        drawn = {field.name: rng.choice(AXES[field.name]) for field in fields(Point)}
        found[Point(**drawn).plain()] = None
    return list(found)


@dataclass(frozen=True, kw_only=True)
class Composed(RuledPolicy):
    """A policy of any parts.

    Args:
        parts: scorer, layer allocator, head allocator.
    """

    parts: tuple[Scorer, LayerAllocator, HeadAllocator]

    @property
    def name(self) -> str:
        """``"composed"``."""
        return "composed"

    @property
    def scorer(self) -> Scorer:
        """The first part."""
        return self.parts[0]

    @property
    def layer_allocator(self) -> LayerAllocator:
        """The second part."""
        return self.parts[1]

    @property
    def head_allocator(self) -> HeadAllocator:
        """The third part."""
        return self.parts[2]

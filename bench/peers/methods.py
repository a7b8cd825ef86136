"""Which policy of ours is which press of kvpress, at the same number of tokens kept.

kvpress evicts after the prompt alone and grows by every generated token. Ours evict while decoding, so that they never
hold more than what prefill kept: rows that may grow set slots aside, which at small sizes would be as many as are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

WINDOW: Final = 8  # a window longer than the question (3 to 6 ids here) scores by what nobody asked
_SAFEGUARD: Final = 0.2  # of AdaKV, kvpress's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is kept.

    Attributes:
        tokens: tokens of the prompt.
        kept: tokens kept per layer and head on average, window included.
    """

    tokens: int
    kept: int

    def __post_init__(self) -> None:
        """Checks that there is something to keep and to evict."""
        if not WINDOW < self.kept < self.tokens:
            raise ValueError(
                f"kept must lie between the window of {WINDOW} tokens and the prompt's {self.tokens}, got {self.kept}; "
                "choose a size in between"
            )

    @property
    def ratio(self) -> float:
        """What kvpress calls ``compression_ratio``: most presses truncate what it leaves, PyramidKV rounds."""
        return 1 - (self.kept + 0.25) / self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method on both sides.

    Attributes:
        ours: arguments of :func:`kvcompress.make_policy`, by size.
        theirs: the press and the attention that it needs, by size; None where kvpress has no such method.
        draws: whether each side draws by chance, so that kept sets cannot be equal.
        difference: what is not the same in both, for readers; None: everything is.
    """

    ours: Callable[[Size], dict[str, Any]]
    theirs: Callable[[Size], dict[str, Any]] | None = None
    draws: bool = False
    difference: str | None = None


def _ours(policy: str, **parameters: Any) -> Callable[[Size], dict[str, Any]]:
    return lambda size: {"name": policy, "cache_size": size.kept, **parameters}


def _theirs(kind: str, *, attention: str = "sdpa", **parameters: Any) -> Callable[[Size], dict[str, Any]]:
    return lambda size: {
        "attention": attention,
        "press": {"kind": kind, "compression_ratio": size.ratio, **parameters},
    }


def _adakv(size: Size) -> dict[str, Any]:
    """The floor of kvpress counts the window's tokens, ours those beyond it: here it means the same tokens."""
    safe = max(int(size.kept * _SAFEGUARD) - WINDOW, 0)
    return {
        "name": "adakv",
        "base": "snapkv",
        "cache_size": size.kept,
        "window_size": WINDOW,
        "decode": "accumulate",
        "floor": (safe + 0.25) / (size.kept - WINDOW) if safe else 0.0,
    }


def _wrapped(kind: str, **parameters: Any) -> Callable[[Size], dict[str, Any]]:
    """A press around SnapKV's."""
    return lambda size: {
        "press": {
            "kind": kind,
            "press": {"kind": "SnapKVPress", "compression_ratio": size.ratio, "window_size": WINDOW},
            **parameters,
        }
    }


_LAST_TOKEN: Final = "ours always keeps the last token"
METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "snapkv": Method(
            ours=_ours("snapkv", window_size=WINDOW, decode="accumulate"),
            theirs=_theirs("SnapKVPress", window_size=WINDOW),
        ),
        "streaming_llm": Method(ours=_ours("streaming_llm"), theirs=_theirs("StreamingLLMPress")),
        "tova": Method(ours=_ours("tova"), theirs=_theirs("TOVAPress")),
        "knorm": Method(ours=_ours("knorm"), theirs=_theirs("KnormPress"), difference=_LAST_TOKEN),
        "keydiff": Method(ours=_ours("keydiff"), theirs=_theirs("KeyDiffPress"), difference=_LAST_TOKEN),
        "expected_attention": Method(
            ours=_ours("expected_attention", window_size=1, decode="accumulate"),
            theirs=_theirs("ExpectedAttentionPress"),
            difference=_LAST_TOKEN,
        ),
        "observed_attention": Method(
            ours=_ours("observed_attention", decode="accumulate"),
            theirs=_theirs("ObservedAttentionPress", attention="eager"),
            difference=f"{_LAST_TOKEN}; theirs needs eager attention",
        ),
        "pyramidkv": Method(
            ours=_ours("pyramidkv", window_size=WINDOW, decode="accumulate"),
            theirs=_theirs("PyramidKVPress", window_size=WINDOW),
            difference=f"below {20 * WINDOW} tokens kept theirs is flat, which is SnapKV; above, its floor is another",
        ),
        "adakv": Method(
            ours=_adakv,
            theirs=_wrapped("AdaKVPress", alpha_safeguard=_SAFEGUARD),
            difference="theirs masks what it evicts and frees nothing",
        ),
        "random": Method(
            ours=_ours("random", window_size=1),
            theirs=_theirs("RandomPress", seed=0),
            draws=True,
            difference=f"{_LAST_TOKEN}; each draws by itself",
        ),
        "cake": Method(ours=_ours("cake", window_size=WINDOW)),
        "kvc": Method(ours=_ours("kvc", window_size=2)),
    }
)


def chosen_methods(names: list[str]) -> dict[str, Method]:
    """Methods by name, in the order given.

    Raises:
        ValueError: no name, or an unknown one.
    """
    unknown = sorted(set(names) - set(METHODS))
    if unknown or not names:
        raise ValueError(f"policies must be among {', '.join(METHODS)}; got {', '.join(unknown) or 'none'}")
    return {name: METHODS[name] for name in names}

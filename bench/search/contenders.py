"""The policies of the headline comparison, all at the same bytes.

Every one evicts while it decodes, so that it holds no more than after the prompt. `kvc` observes with the two tokens
that the search found and, beside it, with eight; published policies that observe the prompt's end do so with eight, no
shorter than a question. `cake_reference` is left out: it keeps of a prompt what `cake` keeps, and is slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from kvcompress import make_policy
from kvcompress.bench.search.trials import MakePolicy
from kvcompress.policies.base import Policy

OURS: Final = "kvc"
_EVICTS: Final = "accumulate"  # published policies that would grow hold the same bytes with it
_OBSERVES: Final = 8


def maker(name: str, **parameters: Any) -> MakePolicy:
    """A policy by name, its cache size still open."""
    return partial(_made, name, **parameters)


def _made(name: str, cache_size: int, **parameters: Any) -> Policy:
    return make_policy(name, cache_size=cache_size, **parameters)


def _observer(name: str, **parameters: Any) -> MakePolicy:
    return maker(name, **{"window_size": _OBSERVES, "decode": _EVICTS, **parameters})


def _half_recent(cache_size: int) -> Policy:
    """H2O as published: half of the cache for recent tokens."""
    return make_policy("h2o", cache_size=cache_size, window_size=max(1, cache_size // 2))


EVERY_POLICY: Final[Mapping[str, MakePolicy]] = MappingProxyType(
    {
        OURS: maker("kvc", window_size=2),
        "kvc, window 8": maker("kvc", window_size=_OBSERVES),
        "cake": maker("cake", window_size=_OBSERVES),
        "snapkv": _observer("snapkv"),
        "pyramidkv": _observer("pyramidkv"),
        "adakv(snapkv)": _observer("adakv", base="snapkv"),
        "criticalkv(snapkv)": _observer("criticalkv", base="snapkv"),
        "defensivekv": _observer("defensivekv"),
        "layer_defensivekv": _observer("layer_defensivekv"),
        "h2o": _half_recent,
        "observed_attention": _observer("observed_attention"),
        "tova": maker("tova"),
        "expected_attention": maker("expected_attention", decode=_EVICTS),
        "keydiff": maker("keydiff"),
        "knorm": maker("knorm"),
        "streaming_llm": maker("streaming_llm"),
        "random": maker("random", window_size=_OBSERVES),
    }
)

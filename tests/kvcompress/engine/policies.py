"""Policies that the tests of the engine run through, and caches of them."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from transformers import PreTrainedModel

from kvcompress import Cake, CompressedCache, Full, Policy, SnapKV, StreamingLLM, make_policy
from tests.kvcompress.engine.architectures import architecture_marks

WINDOW = 8
SMALL: dict[str, Any] = {"cache_size": 40, "window_size": WINDOW}

# Policies that evict nothing from prompts this short, each by another road.
NO_EVICTION_POLICIES: dict[str, Callable[[], Policy]] = {
    "full": Full,
    "cake-large": lambda: Cake(cache_size=400, window_size=WINDOW),
    "snapkv-large": lambda: SnapKV(cache_size=400, window_size=WINDOW),
    "ratio-0": lambda: SnapKV(compression_ratio=0.0, window_size=WINDOW),
}
EVICTING_POLICIES: dict[str, Callable[[], Policy]] = {
    "cake": lambda: Cake(**SMALL),
    "cake-ema": lambda: Cake(**SMALL, decode="ema", sink_tokens=2),
    "cake-keep-prompt": lambda: Cake(**SMALL, decode="keep_prompt"),
    "cake-reference": lambda: make_policy("cake_reference", **SMALL),
    "snapkv": lambda: SnapKV(**SMALL),
    "streaming-llm": lambda: StreamingLLM(cache_size=40, window_size=WINDOW),
    "random": lambda: make_policy("random", **SMALL),
    "h2o": lambda: make_policy("h2o", **SMALL),
    "adakv": lambda: make_policy("adakv", base="cake", **SMALL),
    "layer-defensivekv": lambda: make_policy("layer_defensivekv", **SMALL, sink_tokens=2, decode="accumulate"),
}
ALL_POLICIES = NO_EVICTION_POLICIES | EVICTING_POLICIES

# One plain setting of each policy.
PLAIN_POLICIES = {
    "cake": Cake(**SMALL),
    "cake-reference": make_policy("cake_reference", **SMALL),
    "snapkv": SnapKV(**SMALL),
    "streaming-llm": StreamingLLM(cache_size=40),
    "full": Full(),
}

# Kinds of layers that a policy meets: plain ones, then sliding windows beside them, nothing but sliding windows, linear
# attention in the same layer, and keys that layers share.
MODELS = ["llama", "gemma3", "mistral-sliding", "falcon-h1", "gemma4-sharing"]

# Of each road through the engine one: they run on every kind of layers. The others run on the plain ones and on one
# kind more, each on another.
ON_EVERY_MODEL = ["full", "cake-large", "cake", "cake-ema", "streaming-llm"]


def pairs_of(policies: Iterable[str]) -> list[tuple[str, str]]:
    """Models and policies to run together."""
    plain, *others = MODELS
    further = {policy: others[place % len(others)] for place, policy in enumerate(ALL_POLICIES)}
    return [
        (model, policy)
        for policy in policies
        for model in MODELS
        if policy in ON_EVERY_MODEL or model in (plain, further[policy])
    ]


def every_pair(policies: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrises a test that takes `model` and `policy`."""
    return pytest.mark.parametrize(
        ("model", "policy"),
        [pytest.param(model, policy, marks=architecture_marks(model)) for model, policy in pairs_of(list(policies))],
        indirect=["model"],
    )


without_eviction = pytest.mark.parametrize("policy", NO_EVICTION_POLICIES)
with_eviction = pytest.mark.parametrize("policy", EVICTING_POLICIES)
any_policy = pytest.mark.parametrize("policy", ALL_POLICIES)


def new_cache(model: PreTrainedModel, policy: str, **options: Any) -> CompressedCache:
    return CompressedCache(model, ALL_POLICIES[policy](), **options)

"""Policies that the tests of the engine run through, and caches of them."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel

from kvcompress import Cake, CompressedCache, Full, Policy, SnapKV, StreamingLLM, make_policy
from tests.kvcompress.engine.architectures import shared_model

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

without_eviction = pytest.mark.parametrize("policy", NO_EVICTION_POLICIES)
with_eviction = pytest.mark.parametrize("policy", EVICTING_POLICIES)
any_policy = pytest.mark.parametrize("policy", ALL_POLICIES)


def skip_what_is_unsupported(model: PreTrainedModel, policy: str) -> None:
    if policy.startswith("cake-reference") and model is shared_model("mistral-sliding"):
        pytest.skip("CakeReference knows no sliding windows, and says so (see test_refusals)")


def new_cache(model: PreTrainedModel, policy: str, **options: Any) -> CompressedCache:
    skip_what_is_unsupported(model, policy)
    return CompressedCache(model, ALL_POLICIES[policy](), **options)

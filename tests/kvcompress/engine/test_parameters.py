"""Wrong arguments of a cache, each refused by an error that names the rule."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel

from kvcompress import (
    Cake,
    CakeReference,
    CompressedCache,
    Full,
    SnapKV,
    make_policy,
)
from tests.kvcompress.engine.policies import SMALL

NAN, INFINITY = float("nan"), float("inf")
WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("cake", {"cache_size": 8, "window_size": 9}, ValueError, "window_size"),
    ("cake", {"cache_size": 10, "window_size": 8, "sink_tokens": 3}, ValueError, "sink_tokens"),
    ("cake", {"cache_size": 0}, ValueError, "cache_size"),
    ("cake", {"cache_size": -5}, ValueError, "cache_size"),
    ("cake", {"cache_size": 64.0}, TypeError, "cache_size"),
    ("cake", {"cache_size": "64"}, TypeError, "cache_size"),
    ("cake", {"cache_size": True}, TypeError, "cache_size"),
    ("cake", {}, ValueError, "cache_size"),
    ("cake", {"cache_size": 64, "compression_ratio": 0.5}, ValueError, "compression_ratio"),
    ("cake", {"compression_ratio": 1.0}, ValueError, "compression_ratio"),
    ("cake", {"compression_ratio": -0.1}, ValueError, "compression_ratio"),
    ("cake", {"compression_ratio": NAN}, ValueError, "compression_ratio"),
    ("cake", {"compression_ratio": "half"}, TypeError, "compression_ratio"),
    ("cake", {"cache_size": 64, "window_size": 0}, ValueError, "window_size"),
    ("cake", {"cache_size": 64, "window_size": -1}, ValueError, "window_size"),
    ("cake", {"cache_size": 64, "window_size": 1.5}, TypeError, "window_size"),
    ("cake", {"cache_size": 64, "sink_tokens": -1}, ValueError, "sink_tokens"),
    ("cake", {"cache_size": 64, "tau1": 0.0}, ValueError, "tau1"),
    ("cake", {"cache_size": 64, "tau1": NAN}, ValueError, "tau1"),
    ("cake", {"cache_size": 64, "tau2": -1.0}, ValueError, "tau2"),
    ("cake", {"cache_size": 64, "tau2": INFINITY}, ValueError, "tau2"),
    ("cake", {"cache_size": 64, "gamma": -1.0}, ValueError, "gamma"),
    ("cake", {"cache_size": 64, "gamma": NAN}, ValueError, "gamma"),
    ("cake", {"cache_size": 64, "gamma": "200"}, TypeError, "gamma"),
    ("cake", {"cache_size": 64, "decode": "newest"}, ValueError, "decode"),
    ("cake", {"cache_size": 64, "tau": 1.0}, TypeError, "tau"),
    ("cake_reference", {"cache_size": 64, "sink_tokens": 4}, ValueError, "sink_tokens"),
    ("snapkv", {"cache_size": 64, "pool_size": 4}, ValueError, "pool_size"),
    ("random", {"cache_size": 64, "seed": -1}, ValueError, "seed"),
    ("full", {"cache_size": 64}, ValueError, "cache_size"),
    ("streaming_llm", {"cache_size": 4}, ValueError, "sink_tokens"),
    ("nonsense", {}, ValueError, "nonsense"),
]


@pytest.mark.parametrize(("name", "parameters", "error", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_parameters_are_named(
    name: str, parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_policy(name, **parameters)


WRONG_CACHES: dict[str, tuple[Callable[[PreTrainedModel], Any], type[Exception], str]] = {
    "model": (lambda model: CompressedCache(model.config, Full()), TypeError, "model"),
    "policy-class": (lambda model: CompressedCache(model, Cake), TypeError, "policy"),
    "policy-name": (lambda model: CompressedCache(model, "cake"), TypeError, "make_policy"),
    "cascade-every": (lambda model: CompressedCache(model, Full(), cascade_every=0), ValueError, "cascade_every"),
    "backend": (lambda model: CompressedCache(model, Full(), backend="cuda"), ValueError, "backend"),
    "one-launch": (
        lambda model: CompressedCache(model, Full(), backend="torch", one_launch=True),
        ValueError,
        "one_launch=True is a variant",
    ),
    "static-growing": (lambda model: CompressedCache(model, Full(), static=True), ValueError, "decode"),
    "static-reference": (
        lambda model: CompressedCache(model, CakeReference(**SMALL), static=True),
        ValueError,
        "static",
    ),
    "static-snapkv": (lambda model: CompressedCache(model, SnapKV(**SMALL), static=True), ValueError, "accumulate"),
}


@pytest.mark.parametrize("name", WRONG_CACHES)
def test_wrong_arguments_of_a_cache_are_named(llama: PreTrainedModel, name: str) -> None:
    make, error, message = WRONG_CACHES[name]
    with pytest.raises(error, match=message):
        make(llama)

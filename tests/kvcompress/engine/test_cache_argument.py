"""The two names by which models of transformers take a cache."""

import inspect

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from kvcompress.engine.cache_argument import CACHE_ARGUMENTS, cache_argument, cache_name, given_cache
from tests.kvcompress.engine.graphs import MakeCapturing, decode
from tests.kvcompress.engine.helpers import LONG, forward, prompt


def test_the_name_is_one_that_models_take(llama: PreTrainedModel) -> None:
    assert cache_argument(None).keys() <= inspect.signature(llama.forward).parameters.keys()


def test_a_cache_is_found_under_either_name(llama: PreTrainedModel) -> None:
    cache = DynamicCache()
    for name in CACHE_ARGUMENTS:
        arguments = {"input_ids": prompt(3), name: cache}
        assert cache_name(arguments) == name
        assert given_cache(arguments) is cache
    for nothing in ({}, {"past_key_values": None}, {"cache": None, "input_ids": prompt(3)}):
        assert cache_name(nothing) is None
        assert given_cache(nothing) is None
    output = llama(prompt(3), **cache_argument(cache))
    assert given_cache(output) is cache


def test_a_captured_step_serves_calls_by_the_older_name(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    if "past_key_values" in cache_argument(None):
        pytest.skip("this transformers has one name only")
    cache, stand_in = make()
    forward(own_llama, cache, prompt(LONG))
    decode(own_llama, cache, 0, 3)
    assert stand_in.counts == (1, 1, 2)
    with torch.no_grad():
        own_llama(input_ids=prompt(1), past_key_values=cache, use_cache=True)
    assert stand_in.counts == (1, 1, 3)

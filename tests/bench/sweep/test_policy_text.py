"""Policies as words of a command line."""

import pytest

from kvcompress.bench.sweep.policy_text import parse_policy
from kvcompress.policies.adakv import AdaKV
from kvcompress.policies.cake import Cake
from kvcompress.policies.random_eviction import Random
from kvcompress.policies.registry import POLICIES


@pytest.mark.parametrize("text", [*POLICIES, "snapkv:window_size=8", "adakv:base=cake:floor=0.5", "cake:decode=ema"])
def test_text_is_read_and_written_the_same(text: str) -> None:
    assert str(parse_policy(text)) == text
    assert parse_policy(str(parse_policy(text))) == parse_policy(text)


def test_order_and_spaces_do_not_matter() -> None:
    assert parse_policy(" cake:window_size=8:gamma=5 ") == parse_policy("cake:gamma=5:window_size=8")


def test_policy_has_the_parameters_that_its_text_names() -> None:
    policy = parse_policy("adakv:base=cake:gamma=5:floor=0.5").policy(cache_size=64, ratio=None, seed=3)
    assert policy == AdaKV(base=Cake(cache_size=64, gamma=5), floor=0.5)
    assert parse_policy("random").policy(cache_size=None, ratio=0.5, seed=3) == Random(compression_ratio=0.5, seed=3)


def test_shared_parameters_go_to_the_policies_that_have_them_and_do_not_name_them() -> None:
    shared = {"window_size": 8, "decode": "accumulate", "seed": 1}
    assert str(parse_policy("cake", shared=shared)) == "cake:decode=accumulate:window_size=8"
    assert str(parse_policy("cake:window_size=4", shared=shared)) == "cake:decode=accumulate:window_size=4"
    assert str(parse_policy("adakv", shared=shared)) == "adakv:decode=accumulate:window_size=8"
    assert "decode" not in str(parse_policy("streaming_llm", shared=shared))
    assert str(parse_policy("full", shared=shared)) == "full"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cakes", "policy must be one of .*cakes"),
        ("", "policy must be one of"),
        ("adakv:base=nothing", "policy must be one of .*nothing"),
        ("cake:window", "name=value"),
        ("cake:=3", "name=value"),
        ("cake:cache_size=3", "the sweep gives"),
        ("random:seed=3", "the sweep gives"),
    ],
)
def test_text_that_names_no_policy_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_policy(text)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("cake", ValueError, "'cake' cannot run at cache_size=16, ratio=None: cache_size must be at least window_size"),
        ("cake:gamma=-1", ValueError, "gamma"),
        ("cake:pool=3", TypeError, "no parameter pool"),
        ("snapkv:window_size=x", TypeError, "window_size must be a whole number"),
    ],
)
def test_policy_that_refuses_is_named(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_policy(text).policy(cache_size=16, ratio=None, seed=0)

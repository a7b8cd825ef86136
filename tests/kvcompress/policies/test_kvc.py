"""KVC: its score against the definition in float64, its laws, and what it keeps of real prompts."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kvcompress import KVC, CompressedCache, Policy, PrefillEvent, SnapKV, make_policy
from kvcompress.bench.tasks.registry import make_task
from kvcompress.bench.tasks.run import run_samples
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.policies.kvc import standardised
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import forward, kept, left_padded, prompt
from tests.kvcompress.policies.test_scores import WINDOW, architectures, attention, record, settings

LAYERS = 4


def z(term: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Standard scores over heads and tokens of each sequence, float64."""
    rows = []
    for row, real in zip(term, there, strict=True):
        values = row[real]
        rows.append(((row - values.mean()) / values.std(correction=0)).masked_fill(~real, 0.0))
    return torch.stack(rows)


def definition(event: PrefillEvent, novelty: float, value: float, pool_size: int) -> torch.Tensor:
    """The three terms as the docstring has them."""
    scored = event.scores.token_scores.shape[-1]
    there = (event.positions >= 0).expand(event.keys.shape[:3])
    keys = F.normalize(event.keys.double(), dim=-1)
    anchor = (keys * there[..., None]).sum(2, keepdim=True)
    difference = (1 - F.cosine_similarity(event.keys.double(), anchor, dim=-1))[..., :scored]
    there = there[..., :scored]
    norms = event.values.double().norm(dim=-1)[..., :scored]
    window = attention(event)[..., -WINDOW:, :scored].mean((2, 3))
    a, d, v = (F.avg_pool1d(x * there, pool_size, 1, pool_size // 2) for x in (window, difference, norms))
    return z(a, there) + novelty * z(d, there) + value * z(v, there)


@settings
@architectures
@pytest.mark.parametrize(("novelty", "value", "pool_size"), [(2.0, 1.0, 5), (0.5, 0.0, 1), (0.0, 3.0, 3)])
def test_scores_are_the_definition(setting, architecture, novelty, value, pool_size) -> None:
    policy = KVC(cache_size=1000, window_size=WINDOW, novelty=novelty, value=value, pool_size=pool_size)
    events = record(shared_model(architecture), policy, setting)
    padded = setting == "padded"
    for event in events:
        got, wanted = event.scores.token_scores.double(), definition(event, novelty, value, pool_size)
        there = event.positions[..., : got.shape[-1]] >= 0
        # A padded row's mean over queries is over its real ones: those are all of the window here.
        torch.testing.assert_close(got[there], wanted[there], rtol=2e-3, atol=2e-3 if padded else 1e-3)


@given(st.integers(0, 10**6), st.floats(0.01, 100.0), st.floats(-10.0, 10.0))
def test_standard_scores_know_neither_unit_nor_origin(seed, unit, origin) -> None:
    generator = torch.Generator().manual_seed(seed)
    term = torch.randn(2, 3, 40, generator=generator)
    exists = torch.rand(2, 3, 40, generator=generator) < 0.7
    found = standardised(term, exists)
    for row, real in zip(found, exists, strict=True):
        assert row[real].mean().abs() < 1e-5
        assert (row[real].std(correction=0) - 1).abs() < 1e-4
        assert not row[~real].any()
    torch.testing.assert_close(standardised(term * unit + origin, exists), found, rtol=1e-2, atol=1e-2)
    noise = torch.randn(2, 3, 40, generator=generator).masked_fill(exists, 0.0)
    torch.testing.assert_close(standardised(term + noise, exists), found)  # what no token has does not count


def test_a_term_that_is_the_same_everywhere_says_nothing() -> None:
    exists = torch.ones(1, 2, 5, dtype=torch.bool)
    assert not standardised(torch.full((1, 2, 5), 0.25), exists).any()
    assert not standardised(torch.full((1, 2, 5), 0.25), ~exists).any()
    assert standardised(torch.zeros(1, 2, 0), exists[..., :0]).shape == (1, 2, 0)


def test_without_the_two_other_terms_the_order_is_snapkvs() -> None:
    model = shared_model("llama")
    ours, theirs = (
        record(model, policy, "one block")
        for policy in (
            KVC(cache_size=64, window_size=WINDOW, novelty=0.0, value=0.0),
            SnapKV(cache_size=64, window_size=WINDOW),
        )
    )
    for event, other in zip(ours, theirs, strict=True):
        order = event.scores.token_scores.argsort(dim=-1, stable=True)
        assert_in_order(other.scores.token_scores.gather(-1, order))


def assert_in_order(scores: torch.Tensor) -> None:
    """Ascending, up to the rounding of standardised scores."""
    assert (scores.diff(dim=-1) >= -1e-6 * scores.amax()).all()


@pytest.mark.parametrize("every", [1, 3])
def test_allocating_layer_by_layer_keeps_what_one_shot_keeps(every) -> None:
    model = shared_model("llama")
    ids, mask = left_padded([prompt(150), prompt(90, seed=1)])
    outcomes = []
    for cascade_every in (every, LAYERS):
        cache = CompressedCache(model, KVC(cache_size=40, window_size=8), cascade_every=cascade_every)
        forward(model, cache, ids, mask)
        outcomes.append([kept(cache, layer, row, 0) for layer in range(LAYERS) for row in range(2)])
    assert outcomes[0] == outcomes[1]
    lengths = {len(head) for layer in outcomes[0] for head in layer}
    assert len(lengths) > 1, "layers and heads differ, or this shows nothing"


@pytest.fixture(scope="module")
def testbed() -> tuple[Any, Any]:
    return load_testbed()


def score(testbed: tuple[Any, Any], policy: Policy, task: str, mode: str) -> float:
    """Mean score of eight prompts of 256 tokens."""
    model, tokenizer = testbed
    samples = [make_task(task).sample(tokenizer, 256, 500_000 + number) for number in range(8)]
    outcomes = run_samples(model, tokenizer, lambda: CompressedCache(model, policy), samples, mode)
    return sum(outcome.score for outcome in outcomes) / len(outcomes)


@pytest.mark.parametrize("task", ["needle_8", "variables_2"])
def test_facts_that_nobody_has_asked_for_yet_survive(testbed, task) -> None:
    """The question comes after an eighth of the context is left: window attention alone has lost them by then."""
    size: dict[str, Any] = {"cache_size": 32, "window_size": 4, "decode": "accumulate"}
    assert score(testbed, KVC(**size), task, "query_agnostic") >= 0.8
    assert score(testbed, SnapKV(**size), task, "query_agnostic") <= 0.4


@pytest.mark.parametrize("task", ["needle_8", "variables_2", "key_value"])
def test_what_is_asked_for_survives(testbed, task) -> None:
    assert score(testbed, KVC(cache_size=32, window_size=4), task, "query_aware") >= 0.8


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"novelty": -1.0}, "novelty must be at least 0"),
        ({"value": float("nan")}, "value must be finite"),
        ({"pool_size": 4}, "pool_size must be odd"),
        ({"layer_floor": 1.5}, "layer_floor is a fraction"),
        ({"floor": -0.1}, "floor must be at least 0"),
        ({"decode": "stored"}, "cannot score a token"),
    ],
)
def test_bad_parameters_name_the_rule(parameters, words) -> None:
    with pytest.raises(ValueError, match=words):
        make_policy("kvc", cache_size=64, **parameters)

"""What each policy keeps, and that bad parameters are refused."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from kvcompress import (
    POLICIES,
    Cake,
    CakeCache,
    CakeReference,
    CompressedCache,
    Full,
    Random,
    SnapKV,
    StreamingLLM,
    make_policy,
)
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.kernels.window_scores.reference import pool
from kvcompress.presets import PRESETS, preset


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def prefill(model, policy, ids, **options) -> CompressedCache:
    cache = CompressedCache(model, policy, keep_statistics=True, **options)
    with torch.no_grad():
        model(ids, **cache_argument(cache))
    return cache


def kept(cache: CompressedCache) -> list[torch.Tensor]:
    return [cache.kept_positions(layer) for layer in range(len(cache.layers))]


def test_streaming_llm_keeps_sinks_and_the_last(model) -> None:
    cache = prefill(model, StreamingLLM(cache_size=20, sink_tokens=3), torch.randint(97, (2, 90)))
    wanted = torch.tensor([*range(3), *range(73, 90)])
    for positions in kept(cache):
        assert torch.equal(positions, wanted.expand(2, 2, -1))


def test_snapkv_keeps_the_best_window_means(model) -> None:
    ids = torch.randint(97, (1, 90))
    cache = prefill(model, SnapKV(cache_size=24, window_size=8), ids)
    attached = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(ids, output_attentions=True).attentions
    model.set_attn_implementation(attached)
    for layer, attention in enumerate(attentions):
        scores = pool(attention[:, :, -8:, :-8].mean(2), 5).view(1, 2, 2, -1).mean(2)
        best = scores.topk(16, dim=-1).indices.sort(-1).values
        window = torch.arange(82, 90).expand(1, 2, 8)
        assert torch.equal(cache.kept_positions(layer), torch.cat([best, window], -1))
        torch.testing.assert_close(cache.statistics(layer).token_scores, scores, rtol=1e-4, atol=1e-7)


def test_random_depends_on_seed_layer_and_head_alone(model) -> None:
    ids = torch.randint(97, (1, 90))
    first, again = (kept(prefill(model, Random(cache_size=40), ids)) for _ in range(2))
    other = kept(prefill(model, Random(cache_size=40, seed=1), ids))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0][:, 0], first[0][:, 1])
    changed = kept(prefill(model, Random(cache_size=40), torch.randint(97, (1, 90))))
    assert torch.equal(first[0], changed[0])


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 30, 31, 40, 200])
@pytest.mark.parametrize("policy", [Cake(cache_size=30, window_size=8), SnapKV(cache_size=30, window_size=8)])
def test_counts_follow_budgets_at_every_length(model, policy, tokens) -> None:
    cache = prefill(model, policy, torch.randint(97, (2, tokens)))
    total = torch.zeros(2, dtype=torch.int64)
    for layer, positions in enumerate(kept(cache)):
        budget = cache.statistics(layer).budget
        counts = (positions >= 0).sum(-1)
        assert torch.equal(counts, (budget + min(8, tokens))[:, None].expand(-1, 2))
        last = torch.arange(max(tokens - 8, 0), tokens)
        assert torch.isin(last, positions[0, 0]).all()
        total += budget
    assert total.tolist() == [min(22 * 5, max(tokens - 8, 0) * 5)] * 2


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(40, 160), st.integers(9, 60), st.integers(1, 5))
def test_cascade_equals_one_shot(model, seed, tokens, cache_size, every) -> None:
    """Allocating after every layer, every few, or once at the end keeps exactly the same tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(97, (2, tokens), generator=generator)
    policy = Cake(cache_size=cache_size, window_size=8, tau1=0.7, tau2=0.9)
    one_shot = kept(prefill(model, policy, ids, cascade_every=5))
    cascade = kept(prefill(model, policy, ids, cascade_every=every))
    assert all(torch.equal(a, b) for a, b in zip(one_shot, cascade, strict=True))


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(30, 120), st.integers(30, 120))
def test_rows_are_independent(model, seed, first, second) -> None:
    """A row keeps in a left-padded batch what it keeps alone (in float64, where no two scores tie within rounding)."""
    model = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(seed)
    policy = Cake(cache_size=24, window_size=8)
    rows = [torch.randint(97, (n,), generator=generator) for n in (first, second)]
    longest = max(first, second)
    ids = torch.stack([torch.cat([torch.zeros(longest - len(row), dtype=torch.int64), row]) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
    together = CompressedCache(model, policy)
    with torch.no_grad():
        model(ids, attention_mask=mask, **cache_argument(together))
    for b, row in enumerate(rows):
        alone = prefill(model, policy, row[None])
        for layer in range(5):
            wanted = alone.kept_positions(layer)[0] + longest - len(row)
            got = together.kept_positions(layer)[b]
            assert torch.equal(got[got >= 0], wanted.flatten())


def test_every_policy_can_be_made_by_name() -> None:
    assert isinstance(make_policy("full"), Full)
    for name in POLICIES:
        if name != "full":
            assert make_policy(name, cache_size=64).name == name


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Cake(), ValueError, "exactly one of cache_size"),
        (lambda: Cake(cache_size=64, compression_ratio=0.5), ValueError, "exactly one of cache_size"),
        (lambda: Cake(cache_size=16, window_size=32), ValueError, "at least window_size"),
        (lambda: Cake(cache_size=64, tau1=0.0), ValueError, "tau1"),
        (lambda: Cake(cache_size=64, tau2=float("nan")), ValueError, "tau2 must be finite"),
        (lambda: Cake(cache_size=64, gamma=-1.0), ValueError, "gamma"),
        (lambda: Cake(cache_size=64, decode="never"), ValueError, "last_query"),
        (lambda: Cake(cache_size=64.0), TypeError, "cache_size must be a whole number"),
        (lambda: Cake(cache_size=True), TypeError, "cache_size"),
        (lambda: Cake(compression_ratio=1.0), ValueError, r"\[0, 1\)"),
        (lambda: Cake(cache_size=64, window_size=0), ValueError, "window_size"),
        (lambda: SnapKV(cache_size=64, pool_size=4), ValueError, "odd"),
        (lambda: Full(cache_size=3), ValueError, "takes neither"),
        (lambda: CakeReference(cache_size=64, sink_tokens=4), ValueError, "sinks"),
        (lambda: make_policy("kake", cache_size=3), ValueError, "cake, cake_reference"),
        (lambda: make_policy("snapkv", cache_size=64, tau1=1.0), TypeError, "no parameter tau1"),
        (lambda: preset("gpt-5", 128), ValueError, "llama3.1-8b-128k"),
    ],
)
def test_bad_parameters_name_the_rule(make, error, words) -> None:
    with pytest.raises(error, match=words):
        make()


def test_presets_choose_the_nearest_published_size(model) -> None:
    assert len(PRESETS) == 5
    assert preset("llama3.1-8b-128k", 1024) == (1.6, 0.4)
    assert preset("llama3.1-8b-128k", 100) == (1.6, 0.6)
    assert preset("qwen2.5-7b-instruct", 300) == (0.4, 0.6)
    cache = CakeCache.from_preset("mistral-0.3-7b-32k", model, cache_size=1024)
    assert (cache.policy.tau1, cache.policy.tau2, cache.policy.window_size, cache.policy.gamma) == (0.8, 0.5, 32, 200.0)

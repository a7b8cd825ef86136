"""Every architecture: exact without eviction, and each row of a padded batch as if it were alone."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from kvcompress import Cake, CompressedCache, Full, Policy, SnapKV
from tests.kvcompress.engine.architectures import ARCHITECTURES, SLIDING_WINDOW, architecture_marks, shared_model
from tests.kvcompress.engine.helpers import (
    LONG,
    MEDIUM,
    NO_EVICTION,
    PADDED_ROWS,
    SHORT,
    STEPS,
    difference,
    forward,
    full_cache,
    greedy,
    kept,
    left_padded,
    prompt,
    teacher_forced,
)

WINDOW = 8
CACHE_SIZE = 40
SMALL_CACHE_SIZE = 16  # below SLIDING_WINDOW, so that sliding-window layers evict too
NAMES = list(ARCHITECTURES)
ROWS = {"long": (LONG, 0), "below-cache": (MEDIUM, 2), "below-window": (SHORT, 3)}


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    """Runs of an architecture are shared, so its tests stay in one worker."""
    return [*architecture_marks(name), pytest.mark.xdist_group(f"architecture {name}")]


every_architecture = pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in NAMES])


@cache
def forced_tokens() -> torch.Tensor:
    return torch.cat([prompt(STEPS, 10 + row) for row in range(len(ROWS))])


@cache
def full_run(name: str) -> torch.Tensor:
    return teacher_forced(shared_model(name), full_cache(shared_model(name)), prompt(LONG), forced_tokens()[:1])


NO_EVICTION_POLICIES: dict[str, Callable[[], Policy]] = {
    "full": Full,
    "cake-larger-than-prompt": lambda: Cake(cache_size=200, window_size=WINDOW),
}


@every_architecture
@pytest.mark.parametrize("policy", NO_EVICTION_POLICIES)
def test_no_eviction_equals_dynamic_cache(name: str, policy: str) -> None:
    model = shared_model(name)
    held = CompressedCache(model, NO_EVICTION_POLICIES[policy]())
    logits = teacher_forced(model, held, prompt(LONG), forced_tokens()[:1])
    assert difference(logits, full_run(name)) <= NO_EVICTION
    for layer in held.compressed_layers:
        expected = list(range(LONG + STEPS)) if layer.sliding_window is None else None
        if expected is not None:
            assert kept(held, layer.layer_idx) == [expected] * len(kept(held, layer.layer_idx))


@every_architecture
def test_no_eviction_generates_the_same_tokens_in_a_padded_batch(name: str) -> None:
    model = shared_model(name)
    ids, mask = left_padded([prompt(length, seed) for length, seed in ROWS.values()])
    expected = greedy(model, full_cache(model), ids, mask)
    torch.testing.assert_close(greedy(model, CompressedCache(model, Full()), ids, mask), expected)


class Case:
    """One policy on one architecture, run on a padded batch and on each row alone."""

    def __init__(self, name: str, policy: Policy, compress_sliding: bool | None) -> None:
        self.model, self.policy, self.compress_sliding = shared_model(name), policy, compress_sliding
        self.rows = [prompt(length, seed) for length, seed in ROWS.values()]
        ids, mask = left_padded(self.rows)
        self.batch = self.new_cache()
        self.batch_logits = teacher_forced(self.model, self.batch, ids, forced_tokens(), mask)
        self.alone = [self.new_cache() for _ in self.rows]
        self.alone_logits = [
            teacher_forced(self.model, held, row, forced_tokens()[i : i + 1])
            for i, (held, row) in enumerate(zip(self.alone, self.rows, strict=True))
        ]

    def new_cache(self) -> CompressedCache:
        return CompressedCache(self.model, self.policy, compress_sliding=self.compress_sliding)


POLICIES: dict[str, tuple[Policy, bool | None]] = {
    "cake": (Cake(cache_size=CACHE_SIZE, window_size=WINDOW), None),
    "cake-small": (Cake(cache_size=SMALL_CACHE_SIZE, window_size=WINDOW), None),
    "snapkv": (SnapKV(cache_size=SMALL_CACHE_SIZE, window_size=WINDOW), None),
    "cake-sliding-too": (Cake(cache_size=SMALL_CACHE_SIZE, window_size=WINDOW), True),
    "snapkv-sliding-too": (SnapKV(cache_size=SMALL_CACHE_SIZE, window_size=WINDOW), True),
}


@cache
def case(name: str, policy: str) -> Case:
    return Case(name, *POLICIES[policy])


CASES = [
    pytest.param(name, policy, id=f"{name}-{policy}", marks=marks_of(name))
    for name, architecture in ARCHITECTURES.items()
    for policy in POLICIES
    if architecture.hybrid or not policy.endswith("sliding-too")
]
every_case = pytest.mark.parametrize(("name", "policy"), CASES)


@every_case
def test_row_of_a_padded_batch_equals_row_alone(name: str, policy: str) -> None:
    run = case(name, policy)
    for i, (row, alone) in enumerate(zip(run.rows, run.alone, strict=True)):
        assert difference(run.batch_logits[i : i + 1], run.alone_logits[i]) <= PADDED_ROWS, list(ROWS)[i]
        padding = LONG - row.shape[1]
        for layer in alone.compressed_layers:
            index = layer.layer_idx
            assert kept(run.batch, index, i, padding) == kept(alone, index), (list(ROWS)[i], index)


@every_case
def test_last_tokens_are_kept_and_no_token_is_kept_twice(name: str, policy: str) -> None:
    run = case(name, policy)
    for row, alone in zip(run.rows, run.alone, strict=True):
        total = row.shape[1] + STEPS
        for layer in alone.compressed_layers:
            for head in kept(alone, layer.layer_idx):
                assert head == sorted(set(head))
                assert head[0] >= 0
                assert head[-WINDOW:] == list(range(total - WINDOW, total))


@every_case
def test_eviction_happens(name: str, policy: str) -> None:
    run, model = case(name, policy), shared_model(name)
    layers = run.alone[0].compressed_layers
    sliding_only = all(layer.sliding_window is not None for layer in layers)
    if sliding_only and run.policy.cache_size and run.policy.cache_size > SLIDING_WINDOW:
        pytest.skip("the sliding window itself is smaller than the cache size: nothing else needs to go")
    assert difference(run.alone_logits[0], full_run(name)) > 1e-3
    assert any(layer.evicted for layer in layers)
    assert all(layer.store is not None and layer.store.batch == len(ROWS) for layer in run.batch.compressed_layers)
    attending = {"DynamicLayer", "LinearAttentionAndFullAttentionLayer"}
    crossing = getattr(model.config.get_text_config(), "cross_attention_layers", [])
    assert [layer.layer_idx for layer in layers] == [
        index for index, layer in enumerate(full_cache(model).layers)
        if index not in crossing and type(layer).__name__ != "DummyLayer"
        and (type(layer).__name__ in attending or run.compress_sliding or sliding_only)
    ]  # fmt: skip


@every_case
def test_kept_counts_are_the_budgets(name: str, policy: str) -> None:
    model, (chosen, compress_sliding) = shared_model(name), POLICIES[policy]
    held = CompressedCache(model, chosen, compress_sliding=compress_sliding)
    ids, mask = left_padded([prompt(length, seed) for length, seed in ROWS.values()])
    forward(model, held, ids, mask)
    layers = held.compressed_layers
    for row, (length, _) in enumerate(ROWS.values()):
        window = min(WINDOW, length)
        caps = [min(length, layer.sliding_window or length) - window for layer in layers]
        budgets = [int(held.statistics(layer.layer_idx).budget[row]) for layer in layers]
        for layer, budget, cap in zip(layers, budgets, caps, strict=True):
            heads = kept(held, layer.layer_idx, row, LONG - length)
            assert [len(head) for head in heads] == [budget + window] * len(heads)
            assert 0 <= budget <= cap
            assert all(head[-window:] == list(range(length - window, length)) for head in heads)
        size = chosen.cache_size or 0
        total = (size - WINDOW) * len(layers)
        if isinstance(chosen, Cake):
            assert sum(budgets) == min(total, sum(caps))
        else:
            assert budgets == [min(size - WINDOW, cap) for cap in caps]


@every_case
def test_rows_never_exceed_their_capacity_while_decoding(name: str, policy: str) -> None:
    run = case(name, policy)
    for row, alone in zip(run.rows, run.alone, strict=True):
        counts = [len(kept(alone, layer.layer_idx)[0]) for layer in alone.compressed_layers]
        if isinstance(run.policy, Cake):
            assert sum(counts) <= (run.policy.cache_size or 0) * len(counts)
        else:
            grown = min((run.policy.cache_size or 0), row.shape[1]) + STEPS
            assert max(counts) <= grown

"""What a cache holds, frees and tells: bytes, statistics, observers."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import kvcompress.engine.attend
import kvcompress.engine.cascade
import kvcompress.engine.prefill
from kvcompress import (
    Cake,
    CompressedCache,
    DecodeEvent,
    EvictEvent,
    Full,
    Observer,
    PrefillEvent,
    SnapKV,
    StreamingLLM,
    make_policy,
)
from tests.kvcompress.engine.architectures import build, shared_model, tiny_config
from tests.kvcompress.engine.helpers import (
    LONG,
    MEDIUM,
    SHORT,
    STEPS,
    forward,
    kept,
    left_padded,
    prompt,
    teacher_forced,
)

WINDOW = 8
SMALL: dict[str, Any] = {"cache_size": 40, "window_size": WINDOW}


@pytest.fixture
def llama() -> PreTrainedModel:
    return shared_model("llama")


# ---- bytes --------------------------------------------------------------------------------------------------


def all_tensors(root: Any, seen: dict[int, Any] | None = None) -> list[torch.Tensor]:
    """Every tensor that can be reached from an object, model and policy left out."""
    seen = {} if seen is None else seen
    if id(root) in seen or isinstance(root, str | bytes | int | float | type | torch.nn.Module | torch.device):
        return []
    seen[id(root)] = root
    if isinstance(root, torch.Tensor):
        return [root]
    if isinstance(root, dict):
        children = list(root.values())
    elif isinstance(root, list | tuple):
        children = list(root)
    else:
        slots = [getattr(root, name, None) for cls in type(root).__mro__ for name in getattr(cls, "__slots__", ())]
        children = [*getattr(root, "__dict__", {}).values(), *slots]
        children = [child for child in children if not callable(child)]
    return [tensor for child in children for tensor in all_tensors(child, seen)]


def reachable_bytes(cache: CompressedCache) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in all_tensors(cache)}
    return sum(storages.values())


POLICIES = {
    "cake": Cake(**SMALL),
    "cake-reference": make_policy("cake_reference", **SMALL),
    "snapkv": SnapKV(**SMALL),
    "streaming-llm": StreamingLLM(cache_size=40),
    "full": Full(),
}


@pytest.mark.parametrize("keep_statistics", [False, True], ids=["plain", "statistics"])
@pytest.mark.parametrize("policy", POLICIES)
def test_num_bytes_is_what_can_be_reached(llama: PreTrainedModel, policy: str, keep_statistics: bool) -> None:
    ids, mask = left_padded([prompt(200), prompt(MEDIUM), prompt(SHORT)])
    cache = CompressedCache(llama, POLICIES[policy], keep_statistics=keep_statistics)
    teacher_forced(llama, cache, ids, prompt(3, 1).repeat(3, 1), mask)
    # Beside the storages that count: a few numbers per layer and row, for the allocator and the statistics.
    numbers = 100 * len(cache.layers) * 3
    assert cache.num_bytes <= reachable_bytes(cache) <= cache.num_bytes + numbers


def test_num_bytes_is_capacity_and_nothing_else(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, Cake(**SMALL))
    forward(llama, cache, prompt(LONG))
    slots = sum(sum(layer.store.lengths) for layer in cache.compressed_layers if layer.store)
    assert slots == (40 + 1) * 2 * 4  # cache_size and one free slot per row
    per_slot = 2 * 8 * 4 + 8 + 4  # keys and values of 8 float32, position, score
    assert slots * per_slot <= cache.num_bytes <= slots * per_slot + 4 * 100


def test_report_adds_up(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, Cake(**SMALL))
    teacher_forced(llama, cache, prompt(LONG), prompt(STEPS, 1))
    report = cache.report()
    assert report.policy == "cake"
    assert report.seen == LONG + STEPS
    assert report.num_bytes == cache.num_bytes == sum(layer.num_bytes for layer in report.layers)
    assert report.full_bytes == (LONG + STEPS) * 2 * 2 * 8 * 4 * 4  # keys and values, 2 heads of 8, float32, 4 layers
    assert report.saved == 1 - report.num_bytes / report.full_bytes
    for layer in report.layers:
        assert layer.tokens == len(kept(cache, layer.layer_idx)[0])
        assert layer.budget == tuple(cache.statistics(layer.layer_idx).budget.tolist())
    assert "4: " not in str(report)
    assert "tokens kept" in str(report)


def test_report_of_a_hybrid_counts_the_other_layers() -> None:
    model = shared_model("gemma3")
    cache = CompressedCache(model, Cake(**SMALL))
    forward(model, cache, prompt(LONG))
    report = cache.report()
    others = report.num_bytes - sum(layer.num_bytes for layer in report.layers)
    assert others >= 2 * 2 * 23 * 8 * 4  # two sliding layers, one head of 8
    assert report.full_bytes == sum(layer.full_bytes for layer in report.layers) + others


def test_dropping_the_cache_frees_it_without_the_garbage_collector(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, Cake(**SMALL), keep_statistics=True)
    teacher_forced(llama, cache, prompt(LONG), prompt(3, 1))
    store = cache.layer(0).store
    assert store is not None
    watched = [weakref.ref(cache), weakref.ref(store.slots.keys), weakref.ref(store.slots.values), weakref.ref(store)]
    del store
    gc.collect()
    gc.disable()
    try:
        del cache
        assert [reference() for reference in watched] == [None] * 4
    finally:
        gc.enable()


def test_reset_frees_the_store(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, Cake(**SMALL))
    forward(llama, cache, prompt(LONG))
    watched = weakref.ref(cache.layer(0).store.slots.keys)
    gc.collect()
    gc.disable()
    try:
        cache.reset()
        assert watched() is None
        assert reachable_bytes(cache) == 0
    finally:
        gc.enable()


def test_prefill_does_not_keep_the_prompt_alive(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, SnapKV(**SMALL))
    forward(llama, cache, prompt(400))
    assert reachable_bytes(cache) < 400 * 2 * 2 * 8 * 4 * 4 / 2


class PeakWatch(Observer):
    """Samples what is held each time that something happens."""

    def __init__(self, cache: CompressedCache) -> None:
        self.cache, self.samples = cache, [0]

    def on_prefill(self, event: PrefillEvent) -> None:
        self.samples.append(self.cache.num_bytes)

    def on_evict(self, event: EvictEvent) -> None:
        self.samples.append(self.cache.num_bytes)


@pytest.mark.parametrize("batch", [1, 2])
def test_cascaded_prefill_never_exceeds_total_and_one_full_layer(batch: int) -> None:
    model = build("llama")
    cache = CompressedCache(model, Cake(cache_size=64, window_size=WINDOW))
    watch = PeakWatch(cache)
    cache.add_observer(watch)
    handles = [
        layer.register_forward_hook(lambda *_: watch.samples.append(cache.num_bytes)) for layer in model.model.layers
    ]
    forward(model, cache, prompt(600).repeat(batch, 1))
    for handle in handles:
        handle.remove()
    per_slot = 2 * 8 * 4 + 8 + 4
    total = batch * 2 * 4 * (64 + 1) * per_slot
    full_layer = batch * 2 * 600 * 2 * 8 * 4
    assert len(watch.samples) > 8
    assert max(watch.samples) <= total + full_layer + 4 * 200 * batch
    assert max(watch.samples) <= total + 4 * 200 * batch  # the store of one layer alone never exceeds the total, either


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["cake", "streaming-llm"])
def test_memory_is_constant_over_twenty_thousand_steps(policy: str) -> None:
    import transformers

    torch.manual_seed(0)
    config = tiny_config(
        "Llama", num_hidden_layers=1, max_position_embeddings=40_000, hidden_size=16, intermediate_size=8
    )
    model = transformers.LlamaForCausalLM._from_config(config).eval()
    cache = CompressedCache(model, POLICIES[policy])
    forward(model, cache, prompt(LONG))
    forward(model, cache, prompt(1))
    start, addresses = cache.num_bytes, [t.data_ptr() for t in cache.layer(0).store.slots]
    tokens = prompt(20_000, 3)
    for step in range(20_000):
        forward(model, cache, tokens[:, step : step + 1])
    assert cache.num_bytes == start
    assert [t.data_ptr() for t in cache.layer(0).store.slots] == addresses
    assert cache.get_seq_length() == LONG + 20_001
    assert len(kept(cache, 0)[0]) == 40
    assert kept(cache, 0)[0][-1] == LONG + 20_000


# ---- statistics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_statistics_have_their_shapes_and_types(name: str) -> None:
    model = shared_model(name)
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    cache = CompressedCache(model, Cake(**SMALL), keep_statistics=True)
    forward(model, cache, ids, mask)
    for layer in cache.compressed_layers:
        found = cache.statistics(layer.layer_idx)
        heads = model.config.num_key_value_heads
        assert (found.budget.shape, found.budget.dtype) == ((3,), torch.int64)
        for values in (found.entropy, found.variance, found.preference):
            assert values is not None
            assert (values.shape, values.dtype) == ((3,), torch.float32)
        assert found.token_scores is not None
        assert (found.token_scores.shape, found.token_scores.dtype) == ((3, heads, LONG - WINDOW), torch.float32)
        assert float(found.entropy[2]) == 0.0  # a row within its window has nothing to score
        assert bool((found.token_scores >= 0).all())


def test_statistics_without_scores_and_without_attention(llama: PreTrainedModel) -> None:
    plain = CompressedCache(llama, Cake(**SMALL))
    blind = CompressedCache(llama, make_policy("random", **SMALL), keep_statistics=True)
    for cache in (plain, blind):
        forward(llama, cache, prompt(LONG))
    assert plain.statistics(0).token_scores is None
    found = blind.statistics(0)
    assert (found.entropy, found.variance, found.preference) == (None, None, None)
    assert found.token_scores is not None


def test_budgets_follow_the_preference(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, Cake(**SMALL))
    forward(llama, cache, prompt(400))
    found = [cache.statistics(index) for index in range(4)]
    preference = torch.stack([entry.preference for entry in found]).double().flatten()
    share = preference / preference.sum() * 4 * (40 - WINDOW)
    budgets = torch.stack([entry.budget for entry in found]).flatten()
    assert int(budgets.sum()) == 4 * (40 - WINDOW)
    assert float((budgets - share).abs().max()) < 4  # a divisor method strays by less than one seat per layer


# ---- observers ----------------------------------------------------------------------------------------------


class Recorder(Observer):
    """Keeps copies of all that it hears."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_prefill(self, event: PrefillEvent) -> None:
        self.events.append(copy.deepcopy(event))

    on_evict = on_prefill  # type: ignore[assignment]
    on_decode = on_prefill  # type: ignore[assignment]

    def of(self, kind: type, layer_idx: int) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind) and event.layer_idx == layer_idx]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("llama", "cake"), ("llama", "cake-reference"), ("llama", "snapkv"), ("llama", "streaming-llm"),
        ("llama", "full"), ("gemma3", "cake"), ("mistral-sliding", "cake"), ("mistral-sliding", "full"),
    ],
)  # fmt: skip
def test_every_token_is_either_kept_or_reported_evicted_once(name: str, policy: str, every: int) -> None:
    model = shared_model(name)
    lengths = [LONG, MEDIUM, SHORT]
    ids, mask = left_padded([prompt(length, i) for i, length in enumerate(lengths)])
    cache = CompressedCache(model, POLICIES[policy], cascade_every=every)
    recorder = Recorder()
    cache.add_observer(recorder)
    forward(model, cache, ids[:, :70], mask[:, :70])
    teacher_forced_from(model, cache, ids[:, 70:], mask, STEPS)
    for layer in cache.compressed_layers:
        events = recorder.of(EvictEvent, layer.layer_idx)
        for row, length in enumerate(lengths):
            for head in range(model.config.num_key_value_heads):
                gone = [int(p) for event in events for p in event.evicted[row, head] if p >= 0]
                held = kept(cache, layer.layer_idx, row)[head]
                assert len(gone) == len(set(gone))
                seen = range(LONG - length, LONG + STEPS)
                if layer.sliding_window is None:
                    assert sorted(gone + held) == list(seen)
                else:  # what leaves the sliding window during a block is not eviction, and nobody is told
                    assert set(gone).isdisjoint(held)
                    assert set(gone + held) <= set(seen)


def teacher_forced_from(
    model: PreTrainedModel, cache: CompressedCache, ids: torch.Tensor, mask: torch.Tensor, steps: int
) -> None:
    """A second block, then single tokens; ``mask`` covers the prompt."""
    forward(model, cache, ids, mask)
    for step in range(steps):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        forward(model, cache, prompt(1, step).repeat(len(mask), 1), mask)


def test_events_tell_what_happened(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, Cake(**SMALL))
    recorder = Recorder()
    cache.add_observer(recorder)
    teacher_forced(llama, cache, prompt(LONG), prompt(3, 1))
    prefills = recorder.of(PrefillEvent, 2)
    assert len(prefills) == 1
    assert prefills[0].query.shape == (1, 4, LONG, 8)
    assert prefills[0].keys.shape == prefills[0].values.shape == (1, 2, LONG, 8)
    assert prefills[0].positions[0, 1].tolist() == list(range(LONG))
    assert prefills[0].scores.token_scores.shape == (1, 2, LONG - WINDOW)
    decodes = recorder.of(DecodeEvent, 2)
    assert [event.position for event in decodes] == [LONG, LONG + 1, LONG + 2]
    for event in decodes:
        assert event.query.shape == (1, 4, 1, 8)
        assert event.positions.shape == event.probability.shape
        torch.testing.assert_close(event.probability.sum(-1), torch.ones(1, 2))
        assert bool((event.probability[event.positions < 0] == 0).all())
        assert bool((event.positions == event.position).any(-1).all())
    assert {event.stage for event in recorder.events if isinstance(event, EvictEvent)} == {
        "prefill",
        "cascade",
        "decode",
    }
    cache.remove_observer(recorder)
    count = len(recorder.events)
    forward(llama, cache, prompt(1))
    assert len(recorder.events) == count


def test_observers_change_nothing(llama: PreTrainedModel) -> None:
    plain, watched = (CompressedCache(llama, Cake(**SMALL, decode="ema")) for _ in range(2))
    watched.add_observer(Recorder())
    runs = [teacher_forced(llama, cache, prompt(LONG), prompt(STEPS, 1)) for cache in (plain, watched)]
    assert torch.equal(*runs)


def test_no_event_is_built_when_nobody_listens(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("built for nobody")

    monkeypatch.setattr(kvcompress.engine.prefill, "PrefillEvent", refuse)
    monkeypatch.setattr(kvcompress.engine.cascade, "EvictEvent", refuse)
    monkeypatch.setattr(kvcompress.engine.cascade, "missing_positions", refuse)
    monkeypatch.setattr(kvcompress.engine.attend, "DecodeEvent", refuse)
    cache = CompressedCache(llama, Cake(**SMALL))
    teacher_forced(llama, cache, prompt(LONG), prompt(STEPS, 1))

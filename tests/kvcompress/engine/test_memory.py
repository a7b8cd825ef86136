"""What a cache holds and frees: bytes, at every moment."""

import gc
import weakref
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import (
    Cake,
    CompressedCache,
    EvictEvent,
    Observer,
    PrefillEvent,
    SnapKV,
)
from kvcompress.kernels.dispatch import interpreting
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
from tests.kvcompress.engine.policies import PLAIN_POLICIES, SMALL, WINDOW


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


@pytest.mark.parametrize("keep_statistics", [False, True], ids=["plain", "statistics"])
@pytest.mark.parametrize("policy", PLAIN_POLICIES)
def test_num_bytes_is_what_can_be_reached(llama: PreTrainedModel, policy: str, keep_statistics: bool) -> None:
    ids, mask = left_padded([prompt(200), prompt(MEDIUM), prompt(SHORT)])
    cache = CompressedCache(llama, PLAIN_POLICIES[policy], keep_statistics=keep_statistics)
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
def test_memory_is_constant_over_thousands_of_steps(policy: str) -> None:
    import transformers

    steps = 500 if interpreting() else 4_000
    torch.manual_seed(0)
    config = tiny_config(
        "Llama", num_hidden_layers=1, max_position_embeddings=8_000, hidden_size=16, intermediate_size=8
    )
    model = transformers.LlamaForCausalLM._from_config(config).eval()
    cache = CompressedCache(model, PLAIN_POLICIES[policy])
    forward(model, cache, prompt(LONG))
    forward(model, cache, prompt(1))
    start, addresses = cache.num_bytes, [t.data_ptr() for t in cache.layer(0).store.slots]
    tokens = prompt(steps, 3)
    for step in range(steps):
        forward(model, cache, tokens[:, step : step + 1])
    assert cache.num_bytes == start
    assert [t.data_ptr() for t in cache.layer(0).store.slots] == addresses
    assert cache.get_seq_length() == LONG + steps + 1
    assert len(kept(cache, 0)[0]) == 40
    assert kept(cache, 0)[0][-1] == LONG + steps

"""On a GPU the cascade asks early and answers late: layers that are due wait while the next one runs."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedModel

import kvcompress.engine.allocate
from kvcompress import Cake, CakeCache, CakeReference, CompressedCache, EvictEvent, Full, Observer
from kvcompress.engine.allocate import Cascade, slack_bytes
from kvcompress.errors import CacheStateError
from tests.kvcompress.engine.architectures import build
from tests.kvcompress.engine.cascades import (
    HUGE,
    LAYERS,
    Order,
    SlowFetch,
    block_bytes,
    cache_with,
    device,
    interrupted,
    slow_device,
)
from tests.kvcompress.engine.helpers import LONG, forward, prompt
from tests.kvcompress.engine.policies import SMALL, WINDOW
from tests.kvcompress.engine.test_memory import reachable_bytes


@pytest.mark.parametrize(
    ("blocks", "every", "spans", "allocations"),
    [
        (0, 1, [(1, 1), (2, 2), (3, 3), (4, 4)], [1, 2, 3, 4]),
        (99, 1, [(1, 2), (2, 3), (3, 4), (4, 4)], [1, 2, 3, 4]),
        (99, 2, [(2, 3), (4, 4)], [2, 4]),
        (99, 3, [(3, 4), (4, 4)], [3, 4]),
        (1, 2, [(2, 2), (4, 4)], [2, 4]),
    ],
)
def test_the_host_waits_for_the_device_when_the_next_layer_has_been_scored(
    llama: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    blocks: float,
    every: int,
    spans: list[tuple[int, int]],
    allocations: list[int],
) -> None:
    allocate, scored = Cascade.allocate, []

    def noted(cascade: Cascade) -> list[list[int]]:
        scored.append(len(cascade.scored))
        return allocate(cascade)

    monkeypatch.setattr(Cascade, "allocate", noted)
    cache = cache_with(llama, Cake(**SMALL), int(blocks * block_bytes(LONG)), cascade_every=every)
    with slow_device():
        forward(llama, cache, prompt(LONG))
    assert SlowFetch.spans == spans
    assert scored == allocations
    assert not cache.cascade.pending_bytes


def test_order_of_events_where_the_device_is_asked(llama: PreTrainedModel) -> None:
    cache = cache_with(llama, Cake(cache_size=24, window_size=WINDOW), HUGE, cascade_every=2)
    order = Order()
    cache.add_observer(order)
    with slow_device():
        forward(llama, cache, prompt(LONG))
    scored, own, trims = ([(kind, i) for i in range(LAYERS)] for kind in ("scored", "prefill", "cascade"))
    assert order.events == [*scored[:3], *own[:2], scored[3], *trims[:2], *own[2:]]


class Stages(Observer):
    """Notes which tokens of which layer and head go at which stage."""

    def __init__(self) -> None:
        self.gone: set[tuple[str, int, int, int]] = set()

    def on_evict(self, event: EvictEvent) -> None:
        for head, positions in enumerate(event.evicted[0].tolist()):
            self.gone |= {(event.stage, event.layer_idx, head, position) for position in positions if position >= 0}


def test_stages_are_the_same_on_every_device_with_every_layer_allocated(llama: PreTrainedModel) -> None:
    heard = []
    for slow, slack in ((False, 0), (True, HUGE)):
        cache = cache_with(llama, Cake(**SMALL), slack, cascade_every=1)
        stages = Stages()
        cache.add_observer(stages)
        with device(slow):
            forward(llama, cache, prompt(LONG))
        heard.append(stages.gone)
    assert heard[0] == heard[1]


def test_interrupted_prefill_lets_go_what_the_device_was_asked_for(llama: PreTrainedModel) -> None:
    model = build("llama")
    cache = cache_with(model, Cake(**SMALL), HUGE, cascade_every=3)
    with slow_device():
        interrupted(model, cache)
        assert not SlowFetch.spans
    assert cache.num_bytes == cache.report().num_bytes == cache.cascade.pending_bytes == 3 * block_bytes(LONG)
    assert cache.cascade.may_wait_for_device(SimpleNamespace(num_bytes=0))  # type: ignore[arg-type]
    fetch = weakref.ref(cache.cascade._fetch)
    with pytest.raises(CacheStateError, match=r"reached 3 of 4 layers.*cache\.reset\(\)"):
        forward(model, cache, prompt(5))
    gc.collect()
    cache.reset()
    assert fetch() is None
    assert cache.num_bytes == reachable_bytes(cache) == 0
    assert torch.equal(
        forward(model, cache, prompt(LONG)), forward(llama, CompressedCache(llama, Cake(**SMALL)), prompt(LONG))
    )


@pytest.mark.parametrize("slow", [False, True], ids=["host", "device"])
def test_a_cache_can_be_copied_in_the_middle_of_a_prefill(slow: bool) -> None:
    model = build("llama")
    cache = cache_with(model, Cake(**SMALL), HUGE, cascade_every=3)
    with device(slow):
        interrupted(model, cache)
        twin = copy.deepcopy(cache)
        assert twin.num_bytes == cache.num_bytes > 0
        # The copy has what was under way, and allocates from it as the original does.
        assert twin.cascade.allocate() == cache.cascade.allocate()


def test_slack_is_a_share_of_the_memory_of_a_gpu(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {0: 24 * 2**30, 1: 141 * 2**30}
    asked = []

    def properties(gpu: torch.device) -> SimpleNamespace:
        asked.append(gpu.index)
        return SimpleNamespace(total_memory=sizes[gpu.index])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    kvcompress.engine.allocate._memory.cache_clear()
    small, large = (torch.device("cuda", index) for index in sizes)
    try:
        assert slack_bytes(Cake(**SMALL), small) == 96 * 2**20
        assert slack_bytes(Cake(**SMALL), large) == slack_bytes(Full(), large) == 564 * 2**20
        assert asked == [0, 1]  # once each
        assert slack_bytes(CakeReference(**SMALL), large) == 0  # whose budgets can grow back: each trim counts
    finally:
        kvcompress.engine.allocate._memory.cache_clear()
    assert slack_bytes(Cake(**SMALL), torch.device("xpu")) == 128 * 2**20
    assert CakeCache(llama, 40, WINDOW).cascade.slack == 0  # nothing runs ahead of the host on the CPU

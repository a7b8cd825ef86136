"""What the tests of the cascade share: a device that takes its time, an observer, an interruption."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from transformers import PreTrainedModel

import kvcompress.engine.allocate
import kvcompress.engine.prefill
from kvcompress import CompressedCache, EvictEvent, Observer, Policy, PrefillEvent
from kvcompress.engine.cascade import compress
from kvcompress.engine.fetch import Fetch
from tests.kvcompress.engine.helpers import LONG, forward, prompt

LAYERS = 4
HUGE = 1 << 40


class SlowFetch(Fetch):
    """A fetch that is under way until it is asked for, as from a GPU, and notes the layers scored meanwhile."""

    scored: ClassVar[int] = 0  # in the running prefill
    spans: ClassVar[list[tuple[int, int]]] = []  # (layers scored at the start, at the result) of each fetch

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        super().__init__(parts)
        self.start, self.asked = self.scored, False

    @property
    def under_way(self) -> bool:
        return not self.asked

    def result(self) -> list[torch.Tensor]:
        assert self.scored - self.start <= 1, "layers wait for one more layer, not longer"
        self.asked = True
        self.spans.append((self.start, self.scored))
        return super().result()


@contextlib.contextmanager
def slow_device() -> Iterator[None]:
    """Makes the cascade work as on a GPU, which has to be asked, and takes until the next layer to answer."""

    def counted(cache: CompressedCache, *args: Any) -> None:
        SlowFetch.scored = 1 if cache.cascade.settled else len(cache.cascade.scored) + 1
        compress(cache, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvcompress.engine.allocate, "Fetch", SlowFetch)
        patch.setattr(kvcompress.engine.prefill, "compress", counted)
        SlowFetch.spans.clear()
        yield


def device(slow: bool) -> contextlib.AbstractContextManager[None]:
    return slow_device() if slow else contextlib.nullcontext()


def block_bytes(tokens: int, batch: int = 1) -> int:
    """Bytes of keys and values of a block of the tiny llama: 2 heads of 8 in float32."""
    return batch * 2 * tokens * 2 * 8 * 4


def cache_with(model: PreTrainedModel, policy: Policy, slack: int, **options: Any) -> CompressedCache:
    cache = CompressedCache(model, policy, **options)
    cache.cascade.slack = slack
    return cache


class Order(Observer):
    """Notes which layer something happened to."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_prefill(self, event: PrefillEvent) -> None:
        self.events.append(("scored", event.layer_idx))

    def on_evict(self, event: EvictEvent) -> None:
        self.events.append((event.stage, event.layer_idx))


def interrupted(model: PreTrainedModel, cache: CompressedCache) -> None:
    """A prefill that breaks off after the attention of three of four layers."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[2].mlp.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        forward(model, cache, prompt(LONG))
    handle.remove()

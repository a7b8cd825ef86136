"""What observers hear."""

import copy
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
    Observer,
    PrefillEvent,
)
from tests.kvcompress.engine.architectures import shared_model
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
    cache = CompressedCache(model, PLAIN_POLICIES[policy], cascade_every=every)
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

"""What the tests of captured decode steps share, and what stands in for CUDA graphs where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import Cake, CompressedCache, Policy, SnapKV, StreamingLLM, make_policy
from kvcompress.engine import cache as cache_module
from kvcompress.engine.cache_argument import cache_argument, given_cache
from kvcompress.engine.linear_states import linear_states
from kvcompress.kernels.dispatch import interpreting
from tests.kvcompress.engine.helpers import forward, left_padded, prompt
from tests.kvcompress.engine.policies import SMALL

STEPS = 6 if interpreting() else 20
CAKE = Cake(**SMALL)
POLICIES: dict[str, Policy] = {
    "cake": CAKE,
    "cake-ema-sinks": Cake(**SMALL, decode="ema", sink_tokens=3),
    "cake-keep-prompt": Cake(**SMALL, decode="keep_prompt"),
    "snapkv-evicting": SnapKV(**SMALL, decode="accumulate"),
    "streaming-llm": StreamingLLM(cache_size=40),
    "random": make_policy("random", **SMALL),
}


class StandIn:
    """Captures as CUDA does, as far as a CPU can show it.

    A capture runs the step's Python once and leaves no trace in any tensor of the cache; a replay writes into the
    tensors of the captured output. Counts what it did.
    """

    def __init__(self) -> None:
        self.warm_ups = self.captures = self.replays = self.releases = 0
        self.waits = 0  # so many warm-ups report that the host waited
        self.failure: str | None = None
        self.cache: CompressedCache | None = None

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.warm_ups, self.captures, self.replays

    def warm_up(self, step: Callable[[], Any], device: torch.device) -> tuple[Any, bool]:
        self.warm_ups += 1
        return step(), self.warm_ups <= self.waits

    def capture(self, step: Callable[[], Any], device: torch.device) -> Replayed:
        assert self.cache is not None
        layers = self.cache.compressed_layers
        if self.failure is not None:  # in the middle of a layer, as a capture would
            layers[0].pending, self.cache._pending = True, layers[0]
            raise RuntimeError(self.failure)
        self.captures += 1
        tensors = [tensor for layer in layers if layer.store for tensor in [*layer.store.tensors(), layer.seen]]
        tensors += [state for layer in self.cache.layers for state in linear_states(layer)]
        before = [tensor.clone() for tensor in tensors]
        output = step()
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)
        return Replayed(self, step, output)


class Replayed:
    def __init__(self, owner: StandIn, step: Callable[[], Any], output: Any) -> None:
        self.owner, self.step, self.output = owner, step, output

    def run(self) -> None:
        self.owner.replays += 1
        for old, new in zip(tensors_of(self.output), tensors_of(self.step()), strict=True):
            old.copy_(new)

    def release(self) -> None:
        self.owner.releases += 1
        self.output = None


MakeCapturing = Callable[..., tuple[CompressedCache, StandIn]]


def tensors_of(output: Any) -> list[torch.Tensor]:
    values = output if isinstance(output, tuple) else output.values()
    return [value for value in values if isinstance(value, torch.Tensor)]


def graph_cache(
    model: PreTrainedModel,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: StandIn | None = None,
    **options: Any,
) -> tuple[CompressedCache, StandIn]:
    """A cache with ``cuda_graph=True`` on the CPU, and what captures for it."""
    stand_in = mechanism or StandIn()
    monkeypatch.setattr(cache_module, "mechanism_for", lambda model: stand_in)
    stand_in.cache = CompressedCache(model, policy, cuda_graph=True, **options)
    return stand_in.cache, stand_in


def plain(model: PreTrainedModel, policy: Policy = CAKE, **options: Any) -> CompressedCache:
    return CompressedCache(model, policy, static=True, **options)


def decode(model: PreTrainedModel, cache: CompressedCache, seed: int, steps: int = STEPS) -> torch.Tensor:
    """Logits of single steps with nothing but the token, ``[batch, steps, vocabulary]``."""
    store = cache.compressed_layers[0].store
    assert store is not None
    logits = []
    for i in range(steps):
        token = torch.cat([prompt(1, seed + 100 * i + row) for row in range(store.batch)])
        logits.append(forward(model, cache, token.to(model.device)))
    return torch.cat(logits, dim=1)


def check_same_state(a: CompressedCache, b: CompressedCache) -> None:
    for one, other in zip(a.compressed_layers, b.compressed_layers, strict=True):
        assert torch.equal(a.kept_positions(one.layer_idx), b.kept_positions(one.layer_idx))
        assert one.store is not None
        assert other.store is not None
        for x, y in zip(one.store.tensors(), other.store.tensors(), strict=True):
            assert torch.equal(x, y)
        assert int(one.seen) == int(other.seen)
    for one, other in zip(a.layers, b.layers, strict=True):
        for x, y in zip(linear_states(one), linear_states(other), strict=True):
            assert torch.equal(x, y)


def padded_run(model: PreTrainedModel, cache: CompressedCache, rows: list[torch.Tensor]) -> torch.Tensor:
    """Logits ``[batch, STEPS, vocabulary]`` of a left-padded batch that is given its positions."""
    ids, mask = (tensor.to(model.device) for tensor in left_padded(rows))
    forward(model, cache, ids, mask)
    positions = mask.sum(1, keepdim=True)
    logits = []
    for i in range(STEPS):
        token = torch.cat([prompt(1, 100 * row + i) for row in range(len(rows))]).to(model.device)
        with torch.no_grad():
            output = model(input_ids=token, position_ids=positions + i, **cache_argument(cache), use_cache=True)
        assert given_cache(output) is cache
        logits.append(output.logits)
    return torch.cat(logits, 1)

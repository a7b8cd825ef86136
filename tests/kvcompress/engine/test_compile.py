"""The compiled decode step of static caches: one graph, no recompilation, the same numbers."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import Cake, CompressedCache, Policy, SnapKV, StreamingLLM, make_policy
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.kernels.dispatch import interpreting
from tests.kvcompress.engine.architectures import needs_sharing, shared_model
from tests.kvcompress.engine.helpers import LONG, MEDIUM, NO_EVICTION, SHORT, difference, forward, left_padded, prompt

STEPS = 12 if interpreting() else 20
POLICIES: dict[str, Policy] = {
    "cake": Cake(cache_size=40, window_size=8),
    "cake-ema-sinks": Cake(cache_size=40, window_size=8, decode="ema", sink_tokens=3),
    "cake-keep-prompt": Cake(cache_size=40, window_size=8, decode="keep_prompt"),
    "snapkv-evicting": SnapKV(cache_size=40, window_size=8, decode="accumulate"),
    "streaming-llm": StreamingLLM(cache_size=40),
    "random": make_policy("random", cache_size=40, window_size=8),
}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def decode_compiled(
    model: PreTrainedModel, policy: Policy, backend: str, rows: list[torch.Tensor], steps: int = STEPS
) -> tuple[torch.Tensor, torch.Tensor, CompressedCache]:
    """Logits compiled and eager, ``[batch, steps, vocabulary]`` each, and the static cache."""
    ids, mask = left_padded(rows)
    # Transformers' own sliding-window layers recompile at every step: in hybrids, all layers are compressed.
    static, plain = (CompressedCache(model, policy, static=static, compress_sliding=True) for static in (True, False))
    for cache in (static, plain):
        forward(model, cache, ids, mask)
    positions = mask.sum(1, keepdim=True)

    def step(token: torch.Tensor, position: torch.Tensor, cache: CompressedCache) -> torch.Tensor:
        logits: torch.Tensor = model(
            input_ids=token, position_ids=position, **cache_argument(cache), use_cache=True
        ).logits
        return logits

    compiled: Any = torch.compile(step, fullgraph=True, backend=backend)
    outputs: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for i in range(steps):
            token = torch.cat([prompt(1, 100 * row + i) for row in range(len(rows))])
            with torch._dynamo.config.patch(error_on_recompile=i > 0):
                outputs[0].append(compiled(token, positions + i, static).clone())
            outputs[1].append(step(token, positions + i, plain))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    return torch.cat(outputs[0], 1), torch.cat(outputs[1], 1), static


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *(("llama", policy) for policy in POLICIES),
        ("gemma3", "cake"),
        ("mistral-sliding", "cake"),
        ("gpt-oss", "cake"),
        ("gemma4", "cake"),
        pytest.param("gemma4-sharing", "cake", marks=needs_sharing),
    ],
)
def test_compiled_decoding_equals_eager(name: str, policy: str) -> None:
    model = shared_model(name)
    rows = [prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)]
    compiled, eager, cache = decode_compiled(model, POLICIES[policy], "eager", rows)
    assert difference(compiled, eager) <= NO_EVICTION
    assert int(cache.get_seq_length()) == LONG + STEPS


def test_compiled_through_aot_autograd() -> None:
    compiled, eager, _ = decode_compiled(shared_model("llama"), POLICIES["cake"], "aot_eager", [prompt(LONG)], 10)
    assert difference(compiled, eager) <= NO_EVICTION


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own import
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_with_inductor() -> None:
    compiled, eager, _ = decode_compiled(shared_model("llama"), POLICIES["cake"], "inductor", [prompt(LONG)], 10)
    assert difference(compiled, eager) <= NO_EVICTION


def test_static_addresses_do_not_move() -> None:
    model = shared_model("llama")
    cache = CompressedCache(model, POLICIES["cake"], static=True)
    forward(model, cache, prompt(LONG))
    store = cache.layer(0).store
    assert store is not None
    before = [tensor.data_ptr() for tensor in store.tensors()]
    for i in range(20):
        forward(model, cache, prompt(1, i))
    assert cache.layer(0).store is store
    assert [tensor.data_ptr() for tensor in store.tensors()] == before


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("length", [SHORT, MEDIUM, LONG])
def test_static_without_compiling_equals_dynamic(policy: str, length: int) -> None:
    model = shared_model("mistral-sliding")
    caches = [CompressedCache(model, POLICIES[policy], static=static) for static in (True, False)]
    logits = [
        torch.cat(
            [forward(model, cache, prompt(length))[:, -1:], *(forward(model, cache, prompt(1, i)) for i in range(40))]
        )
        for cache in caches
    ]
    assert difference(*logits) <= NO_EVICTION
    for index in range(4):
        assert torch.equal(caches[0].kept_positions(index), caches[1].kept_positions(index))


def test_second_turn_after_static_decoding() -> None:
    model = shared_model("llama")
    caches = [CompressedCache(model, POLICIES["cake"], static=static) for static in (True, False)]
    logits = []
    for cache in caches:
        forward(model, cache, prompt(LONG))
        for turn in range(3):
            forward(model, cache, prompt(1, turn))
            forward(model, cache, prompt(9, turn))
        logits.append(forward(model, cache, prompt(1)))
    assert difference(*logits) <= NO_EVICTION

"""Real CUDA graphs: bit for bit the numbers of the same steps without them."""

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import CompressedCache
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.graphs import CAKE, POLICIES, check_same_state, decode, padded_run, plain
from tests.kvcompress.engine.helpers import LONG, MEDIUM, SHORT, forward, greedy, left_padded, prompt

pytestmark = pytest.mark.gpu


@pytest.fixture
def on_gpu() -> PreTrainedModel:
    return copy.deepcopy(shared_model("llama")).to("cuda")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_real_graph_equals_steps_without_one(on_gpu: PreTrainedModel, policy: str) -> None:
    rows = [prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)]
    caches = [plain(on_gpu, POLICIES[policy]), CompressedCache(on_gpu, POLICIES[policy], cuda_graph=True)]
    expected, found = (
        torch.cat([padded_run(on_gpu, cache, rows), decode(on_gpu, cache, 0, 64)], 1) for cache in caches
    )
    graph = caches[1].decode_graph
    assert graph is not None
    assert graph.captured
    assert torch.equal(found, expected)  # the same kernels on the same numbers
    check_same_state(caches[1], caches[0])


@pytest.mark.parametrize("name", ["falcon-h1", "nemotron-h", "qwen3-next"])
def test_linear_attention_in_a_real_graph(name: str) -> None:
    model = copy.deepcopy(shared_model(name)).to("cuda")
    caches = [plain(model), CompressedCache(model, CAKE, cuda_graph=True)]
    expected, found = (padded_run(model, cache, [prompt(LONG), prompt(MEDIUM, 2)]) for cache in caches)
    assert torch.equal(found, expected)
    check_same_state(caches[1], caches[0])
    assert caches[1].decode_graph is not None
    assert caches[1].decode_graph.captured


def test_real_graphs_alternate_and_are_made_anew(on_gpu: PreTrainedModel) -> None:
    made = [CompressedCache(on_gpu, CAKE, cuda_graph=True) for _ in range(2)]
    references = [plain(on_gpu) for _ in range(2)]
    for _ in range(2):
        for index, (cache, reference) in enumerate(zip(made, references, strict=True)):
            for each in (cache, reference):
                each.reset()
                forward(on_gpu, each, prompt(LONG, index).cuda())
        for step in range(8):
            for cache, reference in zip(made, references, strict=True):
                assert torch.equal(decode(on_gpu, cache, step, 1), decode(on_gpu, reference, step, 1))
        assert all(cache.decode_graph is not None and cache.decode_graph.captured for cache in made)


@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
def test_generate_with_a_real_graph(on_gpu: PreTrainedModel, options: dict[str, Any]) -> None:
    found = []
    ids, mask = (tensor.cuda() for tensor in left_padded([prompt(LONG), prompt(MEDIUM, 4)]))
    for captured in (False, True):
        torch.manual_seed(5)
        cache = CompressedCache(on_gpu, CAKE, static=True, cuda_graph=captured)
        found.append(greedy(on_gpu, cache, ids, mask, 64, disable_compile=True, **options))
        if captured:
            assert cache.decode_graph is not None
            assert cache.decode_graph.captured
    assert torch.equal(*found)


def test_a_reset_frees_the_graphs_memory(on_gpu: PreTrainedModel) -> None:
    cache = CompressedCache(on_gpu, CAKE, cuda_graph=True)

    def held() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    forward(on_gpu, cache, prompt(LONG).cuda())
    decode(on_gpu, cache, 0, 1)
    cache.reset()
    before = held()
    for _ in range(3):
        forward(on_gpu, cache, prompt(LONG).cuda())
        decode(on_gpu, cache, 0, 3)
        cache.reset()
    assert held() <= before

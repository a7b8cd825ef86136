"""The engine on a CUDA device keeps the same tokens as on the CPU."""

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import CompressedCache
from kvcompress.engine.cache_argument import cache_argument
from tests.kvcompress.engine.helpers import LONG, STEPS, left_padded, prompt, stored_dtypes
from tests.kvcompress.engine.policies import EVICTING_POLICIES
from tests.kvcompress.engine.threads import check_generates_at_once

pytestmark = pytest.mark.gpu


@pytest.fixture
def on_gpu(llama: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(llama).to("cuda")


def run(
    model: PreTrainedModel, policy: str, **options: Any
) -> tuple[torch.Tensor, list[torch.Tensor], CompressedCache]:
    """Logits of a teacher-forced run of a padded batch, kept positions after prefill, and the cache."""
    device = model.device
    ids, mask = left_padded([prompt(LONG), prompt(LONG - 30, 1)])
    forced = torch.cat([prompt(STEPS, 2), prompt(STEPS, 3)])
    cache = CompressedCache(model, EVICTING_POLICIES[policy](), **options)
    with torch.no_grad():
        logits = [model(ids.to(device), attention_mask=mask.to(device), **cache_argument(cache)).logits[:, -1].cpu()]
        kept = [cache.kept_positions(layer.layer_idx).cpu() for layer in cache.compressed_layers]
        for step in range(STEPS):
            mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
            token = forced[:, step : step + 1].to(device)
            logits.append(model(token, attention_mask=mask.to(device), **cache_argument(cache)).logits[:, -1].cpu())
    return torch.stack(logits), kept, cache


@pytest.mark.parametrize("policy", EVICTING_POLICIES)
def test_the_gpu_keeps_what_the_cpu_keeps(llama: PreTrainedModel, on_gpu: PreTrainedModel, policy: str) -> None:
    expected, kept_there, _ = run(llama, policy)
    logits, kept_here, cache = run(on_gpu, policy)
    for here, there in zip(kept_here, kept_there, strict=True):
        assert torch.equal(here, there)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert all(tensor.is_cuda for layer in cache.compressed_layers if layer.store for tensor in layer.store.tensors())


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_float32_model_under_autocast_stores_16_bits(on_gpu: PreTrainedModel, backend: str) -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits, _, cache = run(on_gpu, "cake", backend=backend)
    assert torch.isfinite(logits).all()
    assert stored_dtypes(cache) == {torch.bfloat16}


def test_generates_at_once_equal_their_own_sequential_runs(on_gpu: PreTrainedModel) -> None:
    check_generates_at_once(on_gpu)

"""Attaching and detaching a model, and what else runs on an attached one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from kvcompress import Cake, CompressedCache, Full, attach, detach
from tests.kvcompress.engine.architectures import build
from tests.kvcompress.engine.helpers import (
    LONG,
    MEDIUM,
    NO_EVICTION,
    SHORT,
    STEPS,
    difference,
    forward,
    full_cache,
    greedy,
    left_padded,
    prompt,
    teacher_forced,
)
from tests.kvcompress.engine.policies import (
    NO_EVICTION_POLICIES,
    SMALL,
    any_policy,
    new_cache,
)


@pytest.fixture(params=["sdpa", "eager"])
def own_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = build("llama-eager" if request.param == "eager" else "llama")
    assert model.config._attn_implementation == request.param
    return model


def test_attach_is_idempotent_and_detach_gives_back(own_model: PreTrainedModel) -> None:
    base = own_model.config._attn_implementation
    assert attach(own_model) is own_model
    name = own_model.config._attn_implementation
    assert name != base
    attach(own_model)
    assert own_model.config._attn_implementation == name
    detach(own_model)
    assert own_model.config._attn_implementation == base
    detach(own_model)
    assert own_model.config._attn_implementation == base


def test_attached_again_the_cache_goes_on(own_model: PreTrainedModel) -> None:
    cache, straight = (CompressedCache(own_model, Cake(**SMALL)) for _ in range(2))
    forward(own_model, cache, prompt(LONG))
    forward(own_model, straight, prompt(LONG))
    detach(own_model)
    attach(own_model)
    assert torch.equal(forward(own_model, cache, prompt(1)), forward(own_model, straight, prompt(1)))


def test_saved_config_names_no_implementation_of_ours(own_model: PreTrainedModel, tmp_path: Any) -> None:
    CompressedCache(own_model, Full())
    own_model.save_pretrained(tmp_path)
    for path in tmp_path.glob("*.json"):
        assert "kvc" not in path.read_text()
    again = type(own_model).from_pretrained(tmp_path)
    assert again.config._attn_implementation in {"sdpa", "eager"}


def test_composite_model_attaches_its_text_part_alone() -> None:
    model = build("gemma3-vision-language")
    base = model.config.text_config._attn_implementation
    CompressedCache(model, Full())
    assert model.config.text_config._attn_implementation == f"kvc_{base}"
    assert model.config.vision_config._attn_implementation == base
    detach(model)
    assert model.config.text_config._attn_implementation == base


OTHER_CACHES: dict[str, Callable[[PreTrainedModel], Any]] = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=200),
    "none": lambda model: None,
}


@pytest.mark.parametrize("other", OTHER_CACHES)
def test_another_cache_on_an_attached_model_works_unchanged(own_model: PreTrainedModel, other: str) -> None:
    ids, mask = left_padded([prompt(MEDIUM), prompt(SHORT, 3)])

    def turns() -> torch.Tensor:
        cache = OTHER_CACHES[other](own_model)
        first = greedy(own_model, cache, ids, mask)
        longer = torch.cat([mask, mask.new_ones(2, STEPS)], dim=1)
        return greedy(own_model, cache, first, longer)

    expected = turns()
    attach(own_model)
    torch.testing.assert_close(turns(), expected)


@pytest.mark.parametrize("kept", [1, 5, 0])
def test_layers_that_share_keys_compute_the_same_for_the_last_tokens(kept: int) -> None:
    """They leave the other queries out, by rules that go by the names of transformers' implementations."""
    model = build("gemma4-sharing")
    with torch.no_grad():
        expected = model(prompt(LONG), logits_to_keep=kept).logits
        found = attach(model)(prompt(LONG), logits_to_keep=kept).logits
    assert difference(found, expected) <= NO_EVICTION


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@any_policy
def test_half_precision_runs_and_agrees_with_itself(dtype: torch.dtype, policy: str) -> None:
    model = copy.deepcopy(build("qwen2")).to(dtype)
    cache = new_cache(model, policy)
    logits = teacher_forced(model, cache, prompt(LONG), prompt(STEPS, 1))
    assert logits.dtype == dtype
    assert torch.isfinite(logits).all()
    assert cache.layer(0).store.slots.keys.dtype == dtype
    if policy in NO_EVICTION_POLICIES:
        expected = teacher_forced(model, full_cache(model), prompt(LONG), prompt(STEPS, 1))
        assert difference(logits, expected) <= (6e-2 if dtype == torch.bfloat16 else 8e-3)  # some ten roundings

"""Fidelity and perplexity: no difference without eviction, and equal to an independent computation in float64."""

from math import exp
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from kvcompress import CompressedCache, Full, StreamingLLM
from kvcompress.analysis.fidelity.fidelity import fidelity
from kvcompress.analysis.fidelity.teacher_forcing import force, text_windows
from kvcompress.bench.language_modelling import language_modelling
from kvcompress.bench.testbed.tokenizer import build_tokenizer
from tests.analysis.small_model import small_model

CONTEXT, STEPS, CACHE, SINKS = 24, 10, 8, 2


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return small_model()


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(50, (5, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_full_policy_changes_nothing(chunk: int, model: Any, windows: torch.Tensor) -> None:
    def make() -> CompressedCache:
        return CompressedCache(model, Full())

    close = fidelity(model, make, windows, context=CONTEXT, chunk=chunk)
    assert close.kl <= 1e-12
    assert close.top1 == 1
    assert close.top1_interval_95 == (1, 1)
    losses = language_modelling(model, make, windows, context=CONTEXT, chunk=chunk)
    assert losses.perplexity == pytest.approx(losses.full_perplexity, rel=1e-10)


def _logits(model: Any, ids: torch.Tensor, *, sees_all: bool) -> torch.Tensor:
    """Logits ``[tokens, vocabulary]`` in one pass without a cache, of a query at a time past the prompt.

    A streaming cache holds its sinks and the last others, so what it computes is attention under a mask.
    """
    tokens = len(ids)
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    seen = key <= query
    if not sees_all:
        # Tokens held and the new one: one slot is that of the new token, which pushes the oldest out afterwards.
        recent = key > query - (CACHE - SINKS) - 1
        seen = seen & ((query < CONTEXT) | (key < SINKS) | recent)
    mask = torch.where(seen, 0.0, -torch.inf).double()[None, None]
    return model(input_ids=ids[None], attention_mask=mask, use_cache=False).logits[0]


def test_equals_an_independent_computation(model: Any, windows: torch.Tensor) -> None:
    with torch.inference_mode():
        full = torch.stack([_logits(model, row, sees_all=True) for row in windows]).log_softmax(-1)
        part = torch.stack([_logits(model, row, sees_all=False) for row in windows]).log_softmax(-1)
    full, part = full[:, CONTEXT:-1], part[:, CONTEXT:-1]
    divergence = torch.nn.functional.kl_div(part, full, reduction="none", log_target=True).sum(-1)
    following = windows[:, CONTEXT + 1 :, None]

    def make() -> CompressedCache:
        return CompressedCache(model, StreamingLLM(cache_size=CACHE, sink_tokens=SINKS))

    forced = force(model, make, windows, context=CONTEXT, batch_size=2)
    torch.testing.assert_close(forced.divergence, divergence, atol=1e-10, rtol=1e-8)
    assert torch.equal(forced.agreement, (full.argmax(-1) == part.argmax(-1)).double())
    torch.testing.assert_close(forced.full_loss, -full.gather(-1, following)[..., 0], atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(forced.compressed_loss, -part.gather(-1, following)[..., 0], atol=1e-10, rtol=1e-8)
    assert forced.divergence.mean() > 0.01  # the case tells caches apart at all

    close = fidelity(model, make, windows, context=CONTEXT)
    assert close.kl == pytest.approx(float(divergence.mean()), rel=1e-8)
    assert close.kl_by_position == pytest.approx(divergence.mean(0).tolist(), rel=1e-7)
    assert close.kl_interval_95 is not None
    assert close.kl_interval_95[0] < close.kl < close.kl_interval_95[1]
    losses = language_modelling(model, make, windows, context=CONTEXT)
    assert losses.full_perplexity == pytest.approx(exp(float(forced.full_loss.mean())), rel=1e-9)
    assert losses.loss_increase == pytest.approx(float((forced.compressed_loss - forced.full_loss).mean()), abs=1e-9)
    assert losses.kv_bytes < losses.full_bytes


def test_one_window_has_no_interval(model: Any, windows: torch.Tensor) -> None:
    close = fidelity(model, lambda: DynamicCache(config=model.config), windows[:1], context=CONTEXT)
    assert close.kl_interval_95 is None
    assert close.windows == 1


def test_windows_cut_the_text_without_overlap() -> None:
    tokenizer = build_tokenizer()
    text = " ".join(["apple", "banana", "cherry", "lemon", "orange"] * 9)
    windows = text_windows(tokenizer, text, context=6, steps=3, most=4)
    assert windows.shape == (4, 10)
    assert (windows[:, 0] == tokenizer.bos_token_id).all()
    assert windows[:, 1:].flatten().tolist() == tokenizer(text)["input_ids"][1:37]
    assert text_windows(tokenizer, text, context=6, steps=3, most=99).shape == (5, 10)


def test_bad_requests_are_refused(model: Any, windows: torch.Tensor) -> None:
    tokenizer = build_tokenizer()
    with pytest.raises(ValueError, match="the text must have at least 9 tokens for context=6 and steps=3; it has 1"):
        text_windows(tokenizer, "apple", context=6, steps=3, most=1)
    with pytest.raises(ValueError, match="context must be at least 2"):
        text_windows(tokenizer, "apple", context=1, steps=3, most=1)
    with pytest.raises(ValueError, match="steps=0"):
        force(model, lambda: DynamicCache(config=model.config), windows, context=windows.shape[1] - 1)

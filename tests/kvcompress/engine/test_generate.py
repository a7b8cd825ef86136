"""The ways of generate: beams, samples, prompt lookup, streamers, pipelines, threads."""

import threading
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TextIteratorStreamer, pipeline

from kvcompress.engine.cache_argument import cache_argument
from kvcompress.kernels.dispatch import interpreting
from tests.kvcompress.engine.architectures import VOCABULARY
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
    kept,
    left_padded,
    prompt,
    teacher_forced,
)
from tests.kvcompress.engine.policies import (
    NO_EVICTION_POLICIES,
    any_policy,
    every_pair,
    new_cache,
    with_eviction,
    without_eviction,
)
from tests.kvcompress.engine.threads import check_generates_at_once


@every_pair(NO_EVICTION_POLICIES)
def test_beam_search_without_eviction_equals_dynamic_cache(model: PreTrainedModel, policy: str) -> None:
    ids, mask = left_padded([prompt(MEDIUM), prompt(SHORT, 3)])
    expected = greedy(model, full_cache(model), ids, mask, num_beams=3)
    torch.testing.assert_close(greedy(model, new_cache(model, policy), ids, mask, num_beams=3), expected)


@with_eviction
def test_beam_search_with_eviction_runs_and_each_beam_has_its_own_tokens(llama: PreTrainedModel, policy: str) -> None:
    cache = new_cache(llama, policy)
    result = greedy(llama, cache, prompt(LONG), num_beams=3, num_return_sequences=3)
    assert result.shape == (3, LONG + STEPS)
    assert len({tuple(row) for row in result.tolist()}) == 3
    assert cache.layer(0).store.batch == 3


@any_policy
def test_sampled_sequences_each_equal_themselves_alone(llama: PreTrainedModel, policy: str) -> None:
    cache = new_cache(llama, policy)
    result = greedy(llama, cache, prompt(LONG), do_sample=True, num_return_sequences=3)
    assert len({tuple(row) for row in result.tolist()}) == 3
    for i, row in enumerate(result):
        alone = new_cache(llama, policy)
        teacher_forced(llama, alone, prompt(LONG), row[None, LONG:-1])
        for layer in alone.compressed_layers:
            assert kept(cache, layer.layer_idx, i) == kept(alone, layer.layer_idx)


@without_eviction
def test_prompt_lookup_without_eviction_equals_plain_decoding(llama: PreTrainedModel, policy: str) -> None:
    ids = prompt(15).repeat(1, 4)
    expected = greedy(llama, full_cache(llama), ids, steps=30)
    cache = new_cache(llama, policy)
    torch.testing.assert_close(greedy(llama, cache, ids, steps=30, prompt_lookup_num_tokens=4), expected)


@pytest.mark.parametrize("removed", [-5, LONG + 3], ids=["negated-count", "length-that-remains"])
@pytest.mark.parametrize("policy", ["full", "snapkv-large", "cake-large"])
def test_crop_restores_the_earlier_state(llama: PreTrainedModel, policy: str, removed: int) -> None:
    cropped, straight = new_cache(llama, policy), new_cache(llama, policy)
    for cache in (cropped, straight):
        teacher_forced(llama, cache, prompt(LONG), prompt(3, 1))
    forward(llama, cropped, prompt(5, 8))
    cropped.crop(removed)
    assert cropped.get_seq_length() == straight.get_seq_length()
    assert kept(cropped, 0) == kept(straight, 0)
    after = [torch.cat([forward(llama, c, token) for token in prompt(70, 9).split(1, 1)]) for c in (cropped, straight)]
    assert difference(*after) <= NO_EVICTION


def test_generated_text_streams_from_another_thread(llama: PreTrainedModel, tokenizer: Any) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    cache = new_cache(llama, "cake")
    thread = threading.Thread(target=greedy, args=(llama, cache, prompt(LONG)), kwargs={"streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    expected = greedy(llama, new_cache(llama, "cake"), prompt(LONG))[0, LONG:]
    assert streamed == tokenizer.decode(expected)


def test_pipeline_takes_the_cache(llama: PreTrainedModel, tokenizer: Any) -> None:
    generate = pipeline("text-generation", model=llama, tokenizer=tokenizer, device="cpu")
    text = " ".join(f"w{i:02}" for i in prompt(LONG)[0].tolist())
    cache = new_cache(llama, "cake")
    found = generate(text, **cache_argument(cache), max_new_tokens=STEPS, do_sample=False, return_tensors=True)
    expected = greedy(llama, new_cache(llama, "cake"), prompt(LONG))
    assert found[0]["generated_token_ids"] == expected[0].tolist()
    assert all(layer.evicted for layer in cache.compressed_layers)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i:02}": i for i in range(VOCABULARY)}, unk_token="w03"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w03", pad_token="w00")


@pytest.mark.skipif(
    interpreting(), reason="Triton's interpreter changes its language module while a kernel runs: one thread at a time"
)
def test_generates_at_once_equal_their_own_sequential_runs(model: PreTrainedModel) -> None:
    check_generates_at_once(model)

"""Running samples: the embedded model answers them, batches change nothing, compression holds fewer bytes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache

from kvcompress import Cake, CompressedCache, Full, StreamingLLM
from kvcompress.bench.tasks.registry import make_task
from kvcompress.bench.tasks.run import run_sample, run_samples
from kvcompress.bench.tasks.sample import MODES, Sample, Turn

LEARNED = (
    "needle_1", "needle_8", "needle_20", "variables_2", "variables_4", "key_value", "multi_value", "copy",
    "multi_turn", "multi_turn_variables", "multi_turn_key_value",
)  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LEARNED)
def test_embedded_model_answers_with_the_full_cache(name: str, mode: str, embedded: Any) -> None:
    model, tokenizer = embedded
    samples = [make_task(name).sample(tokenizer, 256, seed) for seed in range(8)]
    ours = run_samples(model, tokenizer, lambda: CompressedCache(model, Full()), samples, mode)
    plain = run_samples(model, tokenizer, lambda: DynamicCache(config=model.config), samples, mode)
    assert sum(outcome.score for outcome in ours) / 8 >= 0.9
    assert [outcome.predictions for outcome in ours] == [outcome.predictions for outcome in plain]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["needle_8", "multi_turn"])
def test_shorter_samples_get_in_a_batch_what_they_get_alone(name: str, mode: str, embedded: Any) -> None:
    model, tokenizer = embedded
    task = make_task(name)
    samples = [task.sample(tokenizer, length, seed) for seed, length in enumerate((250, 128, 199, 256))]
    for policy in (Full(), Cake(cache_size=96, window_size=8)):
        together, alone = (
            run_samples(model, tokenizer, lambda p=policy: CompressedCache(model, p), samples, mode, batch_size=size)
            for size in (4, 1)
        )
        assert [outcome.predictions for outcome in together] == [outcome.predictions for outcome in alone]
        assert [outcome.batch for outcome in together + alone] == [4] * 4 + [1] * 4


def test_question_after_compression_is_harder(embedded: Any) -> None:
    model, tokenizer = embedded
    samples = [make_task("needle_8").sample(tokenizer, 512, seed) for seed in range(16)]

    def score(mode: str) -> float:
        make = lambda: CompressedCache(model, Cake(cache_size=48, window_size=8))  # noqa: E731
        return sum(outcome.score for outcome in run_samples(model, tokenizer, make, samples, mode)) / 16

    assert score("query_aware") >= 0.9
    assert score("query_agnostic") <= 0.5


def test_outcome_tells_bytes_and_times(embedded: Any) -> None:
    model, tokenizer = embedded
    sample = make_task("needle_1").sample(tokenizer, 512, 0)
    full = run_sample(model, tokenizer, lambda: DynamicCache(config=model.config), sample, "query_agnostic")
    small = run_sample(
        model, tokenizer, lambda: CompressedCache(model, StreamingLLM(cache_size=64)), sample, "query_agnostic"
    )
    config = model.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert full.kv_bytes == per_token * (512 + 3 - 1)  # the last token of the answer is never fed
    assert per_token * 64 <= small.kv_bytes <= per_token * 80
    for outcome in (full, small):
        assert 0 < outcome.prefill_seconds < outcome.first_token_seconds
        assert outcome.tokens_per_second is not None
        assert outcome.tokens_per_second > 0
        assert outcome.prompt_tokens == 512


@pytest.mark.parametrize("mode", MODES)
def test_answers_end_where_generate_ends_them(mode: str, byte_model: Any, byte_tokenizer: Any) -> None:
    # Random weights: which token ends a text is chosen from what the model says, so that rows end at different steps.
    samples = [_made(byte_tokenizer, text) for text in ("one fish", "two fish, red fish", "blue")]
    prompts = [torch.tensor([[*s.context_ids, *s.turns[0].question_ids]]) for s in samples]
    free = [byte_model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0) for ids in prompts]
    end = int(free[0][0, prompts[0].shape[1] + 5])
    config = byte_model.generation_config
    before, config.eos_token_id = config.eos_token_id, [1, end]
    try:
        wanted = [
            byte_tokenizer.decode(
                byte_model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0, ids.shape[1] :],
                skip_special_tokens=True,
            )
            for ids in prompts
        ]
        got = run_samples(byte_model, byte_tokenizer, lambda: CompressedCache(byte_model, Full()), samples, mode)
    finally:
        config.eos_token_id = before
    assert [outcome.predictions[0] for outcome in got] == wanted


def _made(tokenizer: Any, text: str) -> Sample:
    return Sample(
        task="made",
        seed=0,
        context=text,
        context_ids=tuple(tokenizer(text)["input_ids"]),
        turns=(
            Turn(question="?", question_ids=tuple(tokenizer("?!")["input_ids"]), answers=("x",), max_new_tokens=20),
        ),
        metric="exact_match",
    )


def test_later_turns_follow_the_models_own_answers(byte_model: Any, byte_tokenizer: Any) -> None:
    sample = make_task("multi_turn", turns=2).sample(byte_tokenizer, 500, 0)
    sample = replace(sample, turns=tuple(replace(turn, max_new_tokens=6) for turn in sample.turns))
    outcome = run_sample(byte_model, byte_tokenizer, lambda: DynamicCache(config=byte_model.config), sample, MODES[0])
    ids = list(sample.context_ids)
    for turn, prediction in zip(sample.turns, outcome.predictions, strict=True):
        prompt = torch.tensor([[*ids, *turn.question_ids]])
        answer = byte_model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :]
        assert byte_tokenizer.decode(answer, skip_special_tokens=True) == prediction
        ids = [*prompt[0].tolist(), *(token for token in answer.tolist() if token != 1)]


def test_bad_requests_are_refused(embedded: Any) -> None:
    model, tokenizer = embedded
    with pytest.raises(ValueError, match="mode must be one of query_aware, query_agnostic; got 'aware'"):
        run_samples(model, tokenizer, DynamicCache, [], "aware")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        run_samples(model, tokenizer, DynamicCache, [], "query_aware", batch_size=0)

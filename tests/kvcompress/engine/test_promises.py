"""What generate, and what stands around it, may do with a compressed cache."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache, TextIteratorStreamer, pipeline

from kvcompress import Cake, CakeCache, CompressedCache, Full, Policy, SnapKV, StreamingLLM, attach, detach, make_policy
from tests.kvcompress.engine.architectures import VOCABULARY, build, shared_model
from tests.kvcompress.engine.helpers import (
    LONG,
    MEDIUM,
    NO_EVICTION,
    PADDED_ROWS,
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

WINDOW = 8
SMALL: dict[str, Any] = {"cache_size": 40, "window_size": WINDOW}

# Policies that evict nothing from prompts this short, each by another road.
NO_EVICTION_POLICIES: dict[str, Callable[[], Policy]] = {
    "full": Full,
    "cake-large": lambda: Cake(cache_size=400, window_size=WINDOW),
    "snapkv-large": lambda: SnapKV(cache_size=400, window_size=WINDOW),
    "ratio-0": lambda: SnapKV(compression_ratio=0.0, window_size=WINDOW),
}
EVICTING_POLICIES: dict[str, Callable[[], Policy]] = {
    "cake": lambda: Cake(**SMALL),
    "cake-ema": lambda: Cake(**SMALL, decode="ema", sink_tokens=2),
    "cake-keep-prompt": lambda: Cake(**SMALL, decode="keep_prompt"),
    "cake-reference": lambda: make_policy("cake_reference", **SMALL),
    "snapkv": lambda: SnapKV(**SMALL),
    "streaming-llm": lambda: StreamingLLM(cache_size=40, window_size=WINDOW),
    "random": lambda: make_policy("random", **SMALL),
}
ALL_POLICIES = NO_EVICTION_POLICIES | EVICTING_POLICIES

without_eviction = pytest.mark.parametrize("policy", NO_EVICTION_POLICIES)
with_eviction = pytest.mark.parametrize("policy", EVICTING_POLICIES)
any_policy = pytest.mark.parametrize("policy", ALL_POLICIES)


@pytest.fixture(params=["llama", "gemma3", "mistral-sliding"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return shared_model(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return shared_model("llama")


def _skip_what_is_unsupported(model: PreTrainedModel, policy: str) -> None:
    if policy.startswith("cake-reference") and model is shared_model("mistral-sliding"):
        pytest.skip("CakeReference knows no sliding windows, and says so (see test_refusals)")


def new_cache(model: PreTrainedModel, policy: str, **options: Any) -> CompressedCache:
    _skip_what_is_unsupported(model, policy)
    return CompressedCache(model, ALL_POLICIES[policy](), **options)


# ---- blocks -------------------------------------------------------------------------------------------------


@without_eviction
@pytest.mark.parametrize("chunk", [1, 7, LONG - 1, LONG])
def test_chunked_prefill_equals_unchunked_without_eviction(model: PreTrainedModel, policy: str, chunk: int) -> None:
    expected = greedy(model, full_cache(model), prompt(LONG))
    got = greedy(model, new_cache(model, policy), prompt(LONG), prefill_chunk_size=chunk)
    torch.testing.assert_close(got, expected)


@with_eviction
@pytest.mark.parametrize("chunk", [7, 32])
def test_chunked_prefill_with_eviction_keeps_the_window(model: PreTrainedModel, policy: str, chunk: int) -> None:
    cache = new_cache(model, policy)
    got = greedy(model, cache, prompt(LONG), prefill_chunk_size=chunk)
    assert got.shape[1] == LONG + STEPS
    assert cache.get_seq_length() == LONG + STEPS - 1  # generate never feeds the last token back
    for layer in cache.compressed_layers:
        for head in kept(cache, layer.layer_idx):
            assert sorted(head)[-WINDOW:] == list(range(LONG + STEPS - 1 - WINDOW, LONG + STEPS - 1))


@pytest.mark.parametrize("policy", ["full", *EVICTING_POLICIES])
def test_blocks_of_a_padded_batch_equal_rows_alone(model: PreTrainedModel, policy: str) -> None:
    rows = [prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)]
    ids, mask = left_padded(rows)
    blocks = [slice(0, 50), slice(50, 75), slice(75, LONG)]  # the short rows' first blocks are nothing but padding
    batch = new_cache(model, policy)
    logits = [forward(model, batch, ids[:, block], mask[:, : block.stop]) for block in blocks][-1]
    tokens = torch.cat([prompt(1, 20 + i) for i in range(3)])
    for _ in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
        step = forward(model, batch, tokens, mask)
    for i, row in enumerate(rows):
        padding = LONG - row.shape[1]
        alone = new_cache(model, policy)
        for block in blocks:
            if block.stop > padding:
                part = row[:, max(block.start - padding, 0) : block.stop - padding]
                last = forward(model, alone, part)
        assert difference(logits[i, -1:], last[0, -1:]) <= PADDED_ROWS
        for _ in range(STEPS):
            last = forward(model, alone, tokens[i : i + 1])
        assert difference(step[i, -1:], last[0, -1:]) <= PADDED_ROWS
        for layer in alone.compressed_layers:
            assert kept(batch, layer.layer_idx, i, padding) == kept(alone, layer.layer_idx)


def test_random_keeps_the_same_tokens_in_one_block_and_in_many() -> None:
    model = shared_model("mistral-sliding")  # whose row starts leave the window
    one, many = (CompressedCache(model, make_policy("random", cache_size=16, window_size=WINDOW)) for _ in range(2))
    forward(model, one, prompt(LONG))
    for block in prompt(LONG).split(30, dim=1):
        forward(model, many, block)
    newest = range(LONG - 24, LONG)
    for layer in one.compressed_layers:
        for a, b in zip(kept(one, layer.layer_idx), kept(many, layer.layer_idx), strict=True):
            assert set(b) <= set(newest)
            assert a[-WINDOW:] == b[-WINDOW:]
    scores = [policy_scores(model, cut) for cut in (0, 30)]
    torch.testing.assert_close(scores[0], scores[1])


def policy_scores(model: PreTrainedModel, cut: int) -> torch.Tensor:
    """Stored scores by position of a sliding layer that keeps all, its prompt given in two blocks."""
    cache = CompressedCache(model, make_policy("random", cache_size=200, window_size=WINDOW))
    for block in prompt(LONG).tensor_split([cut] if cut else [], dim=1):
        forward(model, cache, block)
    store = cache.layer(0).store
    assert store is not None
    order = store.slots.positions.argsort()
    valid = (store.slots.positions[order] >= LONG - 24) & (store.slots.positions[order] < LONG - WINDOW)
    return store.slots.scores[order][valid]


@without_eviction
def test_padded_batch_given_token_by_token(model: PreTrainedModel, policy: str) -> None:
    ids, mask = left_padded([prompt(MEDIUM), prompt(SHORT, 2)])
    caches = (full_cache(model), new_cache(model, policy))
    for i in range(MEDIUM):
        logits = [forward(model, cache, ids[:, i : i + 1], mask[:, : i + 1]) for cache in caches]
    assert difference(logits[1], logits[0]) <= NO_EVICTION
    for layer in caches[1].compressed_layers:
        assert min(kept(caches[1], layer.layer_idx, 1)[0]) >= MEDIUM - SHORT


@without_eviction
def test_second_turn_without_eviction_equals_fresh_cache(model: PreTrainedModel, policy: str) -> None:
    cache = new_cache(model, policy)
    conversation = torch.cat([greedy(model, cache, prompt(LONG)), prompt(20, 5)], dim=1)
    expected = greedy(model, full_cache(model), conversation)
    torch.testing.assert_close(greedy(model, cache, conversation), expected)


@without_eviction
def test_second_turn_of_a_padded_batch_equals_fresh_cache(model: PreTrainedModel, policy: str) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    cache = new_cache(model, policy)
    first = greedy(model, cache, ids, mask)
    conversation = torch.cat([first, torch.cat([prompt(20, 5 + i) for i in range(3)])], dim=1)
    mask = torch.cat([mask, mask.new_ones(3, conversation.shape[1] - mask.shape[1])], dim=1)
    expected = greedy(model, full_cache(model), conversation, mask)
    torch.testing.assert_close(greedy(model, cache, conversation, mask), expected)


@with_eviction
def test_second_turn_with_eviction_keeps_positions_absolute(model: PreTrainedModel, policy: str) -> None:
    cache = new_cache(model, policy)
    conversation = torch.cat([greedy(model, cache, prompt(LONG)), prompt(20, 5)], dim=1)
    before = {layer.layer_idx: kept(cache, layer.layer_idx) for layer in cache.compressed_layers}
    result = greedy(model, cache, conversation)
    seen = result.shape[1] - 1
    assert cache.get_seq_length() == seen
    for index, heads in before.items():
        for old, new in zip(heads, kept(cache, index), strict=True):
            assert {position for position in new if position < LONG + STEPS - 1} <= set(old)
            assert sorted(new)[-WINDOW:] == list(range(seen - WINDOW, seen))


def test_compression_ratio_counts_evicted_tokens_in_later_turns(llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, SnapKV(compression_ratio=0.5, window_size=WINDOW))
    for turn in range(1, 4):
        forward(llama, cache, prompt(60, turn))
        assert [len(head) for head in kept(cache, 0)] == [30 * turn] * 2


def test_compression_ratio_is_that_of_each_row(llama: PreTrainedModel) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    cache = CompressedCache(llama, Cake(compression_ratio=0.5, window_size=WINDOW))
    forward(llama, cache, ids, mask)
    counts = [sum(len(kept(cache, layer.layer_idx, row)[0]) for layer in cache.compressed_layers) for row in range(3)]
    assert counts == [LONG // 2 * 4, MEDIUM // 2 * 4, SHORT * 4]  # no row loses its window


def test_compression_ratio_with_sliding_layers_is_exact() -> None:
    model = shared_model("gemma3")
    cache = CompressedCache(model, Cake(compression_ratio=0.75, window_size=4), compress_sliding=True)
    forward(model, cache, prompt(200))
    assert sum(len(kept(cache, layer.layer_idx)[0]) for layer in cache.compressed_layers) == 200


# ---- generate's ways of decoding ----------------------------------------------------------------------------


@without_eviction
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


@pytest.mark.parametrize("policy", ["full", "snapkv-large", "cake-large"])
def test_crop_restores_the_earlier_state(llama: PreTrainedModel, policy: str) -> None:
    cropped, straight = new_cache(llama, policy), new_cache(llama, policy)
    for cache in (cropped, straight):
        teacher_forced(llama, cache, prompt(LONG), prompt(3, 1))
    forward(llama, cropped, prompt(5, 8))
    cropped.crop(-5)
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
    found = generate(text, past_key_values=cache, max_new_tokens=STEPS, do_sample=False, return_tensors=True)
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


def test_two_generates_at_once_equal_their_own_sequential_runs(model: PreTrainedModel) -> None:
    jobs = [("cake", prompt(LONG), 30), ("snapkv", prompt(MEDIUM, 2), 30), ("full", prompt(SHORT, 3), 30)]
    expected = [greedy(model, new_cache(model, name), ids, steps=steps) for name, ids, steps in jobs]
    found: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        name, ids, steps = jobs[index]
        found[index] = greedy(model, new_cache(model, name), ids, steps=steps)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, tokens in enumerate(expected):
        torch.testing.assert_close(found[index], tokens)


# ---- the cache as an object ---------------------------------------------------------------------------------


@any_policy
def test_deepcopy_continues_identically_and_independently(model: PreTrainedModel, policy: str) -> None:
    cache = new_cache(model, policy)
    teacher_forced(model, cache, prompt(LONG), prompt(3, 1))
    twin = copy.deepcopy(cache)
    assert twin._config.target is cache._config.target
    continued = forward(model, cache, prompt(4, 2))
    forward(model, cache, prompt(5, 3))  # the original goes on
    forward(model, cache, prompt(1, 4))
    assert torch.equal(forward(model, twin, prompt(4, 2)), continued)


@any_policy
def test_reset_cache_equals_a_new_one(model: PreTrainedModel, policy: str) -> None:
    cache = new_cache(model, policy)
    ids, mask = left_padded([prompt(MEDIUM), prompt(SHORT)])
    greedy(model, cache, ids, mask)
    cache.reset()
    assert all(layer.store is None for layer in cache.compressed_layers)
    assert cache.get_seq_length() == 0
    assert torch.equal(
        teacher_forced(model, cache, prompt(LONG), prompt(STEPS, 1)),
        teacher_forced(model, new_cache(model, policy), prompt(LONG), prompt(STEPS, 1)),
    )


@any_policy
@pytest.mark.parametrize("how", ["select", "mask", "repeat", "reorder"])
def test_batch_operations_give_each_row_its_own_future(model: PreTrainedModel, policy: str, how: str) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2), prompt(SHORT, 3)])
    forced = torch.cat([prompt(STEPS, 10 + i) for i in range(3)])
    cache, whole = new_cache(model, policy, keep_statistics=True), new_cache(model, policy)
    for held in (cache, whole):
        teacher_forced(model, held, ids, forced, mask)
    entries = {"select": [2, 0], "mask": [0, 2], "repeat": [0, 0, 1, 1, 2, 2], "reorder": [1, 1, 0]}[how]
    {
        "select": lambda: cache.batch_select_indices(torch.tensor(entries)),
        "mask": lambda: cache.batch_select_indices(torch.tensor([True, False, True])),
        "repeat": lambda: cache.batch_repeat_interleave(2),
        "reorder": lambda: cache.reorder_cache(torch.tensor(entries)),
    }[how]()
    mask = torch.cat([mask, mask.new_ones(3, STEPS)], dim=1)
    for block in (1, 4, 1):
        mask = torch.cat([mask, mask.new_ones(3, block)], dim=1)
        tokens = torch.cat([prompt(block, 30 + i) for i in range(3)])
        got, expected = forward(model, cache, tokens[entries], mask[entries]), forward(model, whole, tokens, mask)
        assert difference(got, expected[entries]) <= NO_EVICTION
    assert cache.statistics(cache.compressed_layers[0].layer_idx).budget.shape == (len(entries),)


# ---- attaching ----------------------------------------------------------------------------------------------


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


# ---- sizes at the edge --------------------------------------------------------------------------------------

LENGTHS = {"one": 1, "two": 2, "below-window": WINDOW - 1, "window": WINDOW, "above-window": WINDOW + 1, "cache": 40}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@any_policy
def test_short_prompts_lose_nothing(model: PreTrainedModel, policy: str, length: int) -> None:
    cache = new_cache(model, policy)
    expected = teacher_forced(model, full_cache(model), prompt(length), prompt(1, 1))
    assert difference(teacher_forced(model, cache, prompt(length), prompt(1, 1)), expected) <= NO_EVICTION


@pytest.mark.parametrize("length", [1, 2, 7, 40])
@pytest.mark.parametrize("policy", ["cake", "snapkv", "cake_reference", "random", "streaming_llm"])
def test_window_of_one_and_no_budget(model: PreTrainedModel, policy: str, length: int) -> None:
    _skip_what_is_unsupported(model, policy.replace("_", "-"))
    sinks = {"sink_tokens": 0} if policy == "streaming_llm" else {}
    for cache_size in (1, 2, 5):
        cache = CompressedCache(model, make_policy(policy, cache_size=cache_size, window_size=1, **sinks))
        logits = teacher_forced(model, cache, prompt(length), prompt(STEPS, 1))
        assert torch.isfinite(logits).all()
        counts = [len(kept(cache, layer.layer_idx)[0]) for layer in cache.compressed_layers]
        assert min(counts) >= 1
        if policy != "snapkv":
            assert sum(counts) <= cache_size * len(counts)


@pytest.mark.parametrize("policy", ["cake", "snapkv", "cake_reference"])
def test_budget_zero_keeps_exactly_the_window(llama: PreTrainedModel, policy: str) -> None:
    cache = CompressedCache(llama, make_policy(policy, cache_size=WINDOW, window_size=WINDOW))
    forward(llama, cache, prompt(LONG))
    for layer in cache.compressed_layers:
        assert kept(cache, layer.layer_idx) == [list(range(LONG - WINDOW, LONG))] * 2


@pytest.mark.parametrize("decode", ["last_query", "ema", "accumulate", "keep_prompt", "position", "off"])
def test_sinks_are_kept(model: PreTrainedModel, decode: str) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2)])
    policy = Cake(cache_size=16, window_size=4, sink_tokens=3, decode=decode)
    cache = CompressedCache(model, policy)
    teacher_forced(model, cache, ids, torch.cat([prompt(STEPS, 1), prompt(STEPS, 2)]), mask)
    for layer in cache.compressed_layers:
        for row, start in enumerate((0, LONG - MEDIUM)):
            for head in kept(cache, layer.layer_idx, row, start):
                oldest = 0 if layer.sliding_window is None else head[-1] + 1 - layer.sliding_window
                assert {p for p in range(3) if p >= oldest} <= set(head)


def test_sinks_of_a_sliding_layer_leave_with_the_window() -> None:
    model = shared_model("mistral-sliding")
    plain, sinks = (CompressedCache(model, Cake(cache_size=16, window_size=4, sink_tokens=count)) for count in (0, 3))
    for cache in (plain, sinks):
        forward(model, cache, prompt(LONG))
    for layer in plain.compressed_layers:  # the first three tokens are long gone: nothing else may take their privilege
        assert kept(plain, layer.layer_idx) == kept(sinks, layer.layer_idx)


@pytest.mark.parametrize("policy", ["full", "cake-large"])
def test_holes_in_the_attention_mask(model: PreTrainedModel, policy: str) -> None:
    mask = torch.ones(2, LONG, dtype=torch.long)
    mask[0, 20:30] = 0
    mask[1, :5] = 0
    mask[1, 70:73] = 0
    ids = torch.cat([prompt(LONG), prompt(LONG, 1)])
    forced = torch.cat([prompt(STEPS, 2), prompt(STEPS, 3)])
    cache = new_cache(model, policy)
    expected = teacher_forced(model, full_cache(model), ids, forced, mask)
    assert difference(teacher_forced(model, cache, ids, forced, mask), expected) <= NO_EVICTION


def test_holes_are_never_kept(llama: PreTrainedModel) -> None:
    mask = torch.ones(1, LONG, dtype=torch.long)
    mask[0, 20:60] = 0
    cache = new_cache(llama, "cake")
    forward(llama, cache, prompt(LONG), mask)
    for layer in cache.compressed_layers:
        for head in kept(cache, layer.layer_idx):
            assert not set(head) & set(range(20, 60))


@pytest.mark.parametrize("every", [2, 3, 100])
@pytest.mark.parametrize("policy", ["cake", "cake-ema", "snapkv"])
def test_cascading_less_often_keeps_the_same_tokens(model: PreTrainedModel, policy: str, every: int) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(MEDIUM, 2)])
    forced = torch.cat([prompt(STEPS, 1), prompt(STEPS, 2)])
    often, seldom = new_cache(model, policy), new_cache(model, policy, cascade_every=every)
    assert torch.equal(
        teacher_forced(model, often, ids, forced, mask), teacher_forced(model, seldom, ids, forced, mask)
    )
    for layer in often.compressed_layers:
        assert torch.equal(often.kept_positions(layer.layer_idx), seldom.kept_positions(layer.layer_idx))


def test_cake_cache_is_the_policy_cake(llama: PreTrainedModel) -> None:
    short = CakeCache(llama, 40, WINDOW, tau1=1.5, tau2=0.5, gamma=100.0)
    long = CompressedCache(llama, Cake(**SMALL, tau1=1.5, tau2=0.5, gamma=100.0))
    assert torch.equal(greedy(llama, short, prompt(LONG)), greedy(llama, long, prompt(LONG)))
    assert kept(short, 0) == kept(long, 0)

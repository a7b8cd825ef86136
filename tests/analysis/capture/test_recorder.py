"""A recorder hears what the model really attends to, changes nothing, and writes samples that say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from kvcompress import Cake, CakeCache, CompressedCache, SnapKV, StreamingLLM
from kvcompress.analysis.capture.raw import RawRequest
from kvcompress.analysis.capture.recorder import Recorder
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.reader import Sample, list_samples, read_sample
from kvcompress.engine.attach import is_attached, text_config
from kvcompress.engine.cache_argument import cache_argument
from tests.kvcompress.engine.architectures import build, shared_model
from tests.kvcompress.engine.helpers import greedy, left_padded, prompt

RAW = RecorderSettings(raw=RawRequest(), max_queries=10_000)
STEPS = 6
TOLERANCE = 2e-6  # float32 probabilities from logits that another kernel has added up


def record(
    model: PreTrainedModel, folder: Path, ids: torch.Tensor, cache: Any = None, mask: torch.Tensor | None = None
) -> Sample:
    """Records a greedy generation; the first sample."""
    with Recorder(model, folder, settings=RAW, force=True):
        greedy(model, cache, ids, mask, steps=STEPS)
    return read_sample(folder)


def eager_attentions(name: str, ids: torch.Tensor) -> list[torch.Tensor]:
    """What transformers' own eager attention returns for a whole text: ``[1, heads, tokens, tokens]`` per layer."""
    model = build(name)
    model.load_state_dict(shared_model(name).state_dict())  # some families draw their biases anew each time
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return list(model(ids, use_cache=False, output_attentions=True).attentions)


@pytest.mark.parametrize(
    "name",
    ["llama", "llama-eager", "qwen3", "gemma2", "gemma3", "gpt-oss", "mistral-sliding", "granite", "llama-mha", "phi"],
)
def test_what_is_heard_is_what_the_model_attends_to(name: str, tmp_path: Path) -> None:
    model, ids = shared_model(name), prompt(70)
    sample = record(model, tmp_path, ids)
    tokens = sample.tensor("token.ids")[None]
    expected = eager_attentions(name, tokens)
    assert sample.kinds.tolist() == [0] + [1] * (STEPS - 1)
    for layer, whole in enumerate(expected):
        torch.testing.assert_close(sample.raw_attention(0, layer), whole[0, :, :70, :70], atol=TOLERANCE, rtol=1e-4)
        for event in range(1, STEPS):
            at = 69 + event
            raw = sample.raw_attention(event, layer)[:, 0]
            torch.testing.assert_close(raw, whole[0, :, at, : at + 1], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("make", [None, DynamicCache, "cake", "snapkv", "streaming", "static"])
def test_recording_changes_no_token(make: Any, tmp_path: Path) -> None:
    model, ids = shared_model("llama"), prompt(60)

    def cache() -> Any:
        if make == "static":
            return StaticCache(config=model.config, max_cache_len=80)
        policies = {"cake": Cake, "snapkv": SnapKV, "streaming": StreamingLLM}
        if make in policies:
            return CompressedCache(model, policies[make](cache_size=24, window_size=4))
        return None if make is None else make(config=model.config)

    alone = greedy(model, cache(), ids, steps=STEPS)
    with Recorder(model, tmp_path):
        recorded = greedy(model, cache(), ids, steps=STEPS)
    assert torch.equal(alone, recorded)
    sample = read_sample(tmp_path)
    assert sample.compressed is (make in ("cake", "snapkv", "streaming"))
    assert sample.tensor("token.ids").tolist() == recorded[0, :-1].tolist()
    assert sample.summary.prompt_tokens == 60


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "mistral-sliding"])
@pytest.mark.parametrize("policy", ["cake", "streaming"])
def test_a_compressed_run_is_recorded_with_what_it_holds(name: str, policy: str, tmp_path: Path) -> None:
    model, ids = shared_model(name), prompt(70)
    made = Cake(cache_size=20, window_size=4) if policy == "cake" else StreamingLLM(cache_size=20, window_size=4)
    cache = CompressedCache(model, made)
    sample = record(model, tmp_path, ids, cache)
    last = sample.events - 1
    for place, layer_idx in enumerate(sample.summary.layer_indices):
        if not any(layer.layer_idx == layer_idx for layer in cache.compressed_layers):
            assert int(sample.tensor("compression.budget")[place]) == -1
            continue
        held = sample.held(last)[place]
        for head, kept in enumerate(cache.kept_positions(layer_idx)[0]):
            assert held[head].nonzero().flatten().tolist() == kept[kept >= 0].tolist()
        assert sample.tensor("compression.held")[last, place].tolist() == held.sum(-1).tolist()
        assert int(sample.tensor("compression.budget")[place]) == int(cache.statistics(layer_idx).budget[0])
    assert int(sample.tensor("compression.bytes")[last]) == cache.num_bytes


def test_a_decoded_token_attends_to_what_was_held_before(tmp_path: Path) -> None:
    model = shared_model("llama")
    sample = record(model, tmp_path, prompt(70), CakeCache(model, cache_size=20, window_size=4))
    group = sample.summary.model.query_heads // sample.summary.model.kv_heads
    for event in range(1, sample.events):
        could = sample.held(event - 1).repeat_interleave(group, 1)[..., : 70 + event].clone()
        could[..., -1] = True  # its own
        for layer in range(sample.summary.model.layers):
            p = sample.raw_attention(event, layer)[:, 0]
            assert bool((p[~could[layer]] == 0).all())
            torch.testing.assert_close(p.sum(-1), torch.ones(len(p)), atol=1e-5, rtol=0)


def test_scores_are_the_policys_and_the_worst_are_evicted(tmp_path: Path) -> None:
    model = shared_model("llama")
    cache = CompressedCache(model, Cake(cache_size=20, window_size=4), keep_statistics=True)
    sample = record(model, tmp_path, prompt(70), cache)
    score, held = sample.tensor("compression.score"), sample.held(0)
    for place, layer_idx in enumerate(sample.summary.layer_indices):
        expected = cache.statistics(layer_idx).token_scores
        assert expected is not None
        torch.testing.assert_close(score[place, :, :66], expected[0])
        assert bool(score[place, :, 66:].isnan().all())  # the window, and what was generated
        for head in range(score.shape[1]):
            kept, gone = (
                score[place, head, :66][held[place, head, :66]],
                score[place, head, :66][~held[place, head, :66]],
            )
            assert not kept.numel() or float(kept.min()) >= float(gone.max())


@pytest.mark.parametrize("compressed", [False, True])
def test_rows_of_a_padded_batch_are_recorded_as_they_are_alone(compressed: bool, tmp_path: Path) -> None:
    model = shared_model("llama")
    rows = [prompt(70, seed=1), prompt(40, seed=2)]
    ids, mask = left_padded(rows)

    def cache() -> Any:
        return CakeCache(model, cache_size=24, window_size=4) if compressed else None

    record(model, tmp_path / "batch", ids, cache(), mask)
    assert list_samples(tmp_path / "batch") == [0, 1]
    for place, row in enumerate(rows):
        together = read_sample(tmp_path / "batch", place)
        alone = record(model, tmp_path / f"alone{place}", row, cache())
        assert together.summary.prompt_tokens == alone.summary.prompt_tokens == row.shape[1]
        assert torch.equal(together.tensor("token.ids"), alone.tensor("token.ids"))
        for name in set(alone.names) - {"compression.bytes"}:
            a, b = together.tensor(name), alone.tensor(name)
            if a.dtype == torch.int64 and not name.endswith("top_positions"):
                assert torch.equal(a, b), name
            elif name.endswith(("entropy", "mass", "norm", "score", "energy")):
                torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3, equal_nan=True)


def test_each_prompt_is_a_sample_of_its_own(tmp_path: Path) -> None:
    model = shared_model("llama")
    cache = CakeCache(model, cache_size=24, window_size=4)
    with Recorder(model, tmp_path) as recorder:
        greedy(model, None, prompt(30), steps=3)
        greedy(model, cache, prompt(40), steps=3)
        cache.reset()
        greedy(model, cache, prompt(50), steps=3)
    assert [sample.prompt_tokens for sample in recorder.samples] == [30, 40, 50]
    assert [sample.policy is not None for sample in recorder.samples] == [False, True, True]
    assert list_samples(tmp_path) == [0, 1, 2]


def test_a_conversation_stays_one_sample(tmp_path: Path) -> None:
    model = shared_model("llama")
    cache = CakeCache(model, cache_size=24, window_size=4)
    with Recorder(model, tmp_path, settings=RAW), torch.no_grad():
        model(prompt(40), **cache_argument(cache))
        model(prompt(1), **cache_argument(cache))
        model(prompt(9, seed=3), **cache_argument(cache))
    sample = read_sample(tmp_path)
    assert sample.kinds.tolist() == [0, 1, 0]
    assert sample.tensor("event.tokens").tolist() == [40, 41, 50]
    assert sample.tensor("compression.held")[-1].sum(-1).eq(sample.held(2).sum((1, 2))).all()
    torch.testing.assert_close(sample.raw_attention(2, 0).sum(-1), torch.ones(4, 9), atol=1e-5, rtol=0)


def test_keys_and_values_are_summed_up(tmp_path: Path) -> None:
    model, ids = shared_model("llama"), prompt(60)
    cache = DynamicCache(config=model.config)
    settings = RecorderSettings(save_kv=True)
    with Recorder(model, tmp_path, settings=settings):
        greedy(model, cache, ids, steps=STEPS)
    sample = read_sample(tmp_path)
    for layer in range(sample.summary.model.layers):
        keys = cache.layers[layer].keys[0].double()
        values = cache.layers[layer].values[0].double()
        assert torch.equal(sample.tensor(f"raw.keys.{layer}").double(), keys[:, :60])
        for what, whole in (("key", keys), ("value", values)):
            got = {name: sample.tensor(f"kv.{what}_{name}")[layer].double() for name in ("norm", "energy", "scale")}
            torch.testing.assert_close(got["norm"], whole.norm(dim=-1), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(got["energy"], whole.square().mean(1), atol=1e-6, rtol=1e-5)
            scale = whole[:, :60].square().mean((1, 2)).sqrt()
            torch.testing.assert_close(got["scale"], scale, atol=1e-6, rtol=1e-5)
            below = torch.stack(
                [(whole.abs() < t * scale[:, None, None]).double().mean((1, 2)) for t in (0.01, 0.05, 0.1, 0.25)], -1
            )
            torch.testing.assert_close(sample.tensor(f"kv.{what}_sparsity")[layer].double(), below, atol=2e-3, rtol=0)
            singular = torch.linalg.svdvals(whole)
            found = sample.tensor(f"kv.{what}_singular_values")[layer].double()
            torch.testing.assert_close(found, singular, atol=2e-3 * float(singular.max()), rtol=0)


def test_influence_is_the_mass_of_all_decoded_tokens(tmp_path: Path) -> None:
    model = shared_model("llama")
    sample = record(model, tmp_path, prompt(50))
    expected = torch.zeros(sample.summary.model.layers, sample.token_count)
    for event in range(1, sample.events):
        for layer in range(len(expected)):
            expected[layer, : 50 + event] += sample.raw_attention(event, layer)[:, 0].mean(0)
    torch.testing.assert_close(sample.tensor("token.influence"), expected, atol=1e-5, rtol=1e-5)


def test_mass_per_token_is_stored_as_often_as_asked(tmp_path: Path) -> None:
    model = shared_model("llama")
    with Recorder(model, tmp_path, settings=RecorderSettings(token_mass_every=3)):
        greedy(model, None, prompt(30), steps=8)
    sample = read_sample(tmp_path)
    assert sample.token_mass_events == [0, 1, 4, 7]
    with pytest.raises(ValueError, match="token_mass_every=1"):
        sample.token_mass(2)


def test_layers_can_be_chosen_and_long_events_leave_raw_attention_out(tmp_path: Path) -> None:
    model = shared_model("llama")
    settings = RecorderSettings(raw=RawRequest(layers=(2,), heads=(3, 0), max_tokens=42))
    with Recorder(model, tmp_path, settings=settings, layers=[2, 1]):
        greedy(model, None, prompt(40), steps=6)
    sample = read_sample(tmp_path)
    assert sample.summary.layer_indices == (1, 2)
    assert sample.summary.raw_heads == (3, 0)
    assert sample.raw_attention(0, 2).shape == (2, 40, 40)
    assert sample.summary.raw_left_out == (3, 4, 5)
    with pytest.raises(ValueError, match="not stored"):
        sample.raw_attention(0, 1)


def test_where_heads_differ_the_layers_that_are_compressed_are_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, ids = shared_model("gemma4"), prompt(70)
    sample = record(model, tmp_path, ids, CakeCache(model, cache_size=40))
    assert sample.summary.layer_indices == (1, 3)
    assert sample.summary.model.head_dim == 16
    assert [message for message in caplog.messages if "recording layers 1, 3 (" in message]
    caplog.clear()
    with Recorder(model, tmp_path, layers=[0, 2], force=True):
        greedy(model, None, ids, steps=STEPS)
    assert read_sample(tmp_path).summary.model.head_dim == 8
    assert not caplog.messages
    with pytest.raises(ValueError, match="indices from 0 on, at least one"):
        Recorder(model, tmp_path / "none", layers=[])


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = build("llama")
    before = model.config._attn_implementation
    with Recorder(model, tmp_path):
        greedy(model, None, prompt(20), steps=2)
    assert model.config._attn_implementation == before
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    with Recorder(model, tmp_path, force=True):
        cache = CakeCache(model, cache_size=16, window_size=4)
        greedy(model, cache, prompt(30), steps=2)
    assert is_attached(text_config(model))  # the cache still needs it
    assert not cache.observers
    cache.reset()
    greedy(model, cache, prompt(31), steps=2)


def test_two_models_are_told_apart(tmp_path: Path) -> None:
    one, other = build("llama"), build("qwen3")
    with Recorder(one, tmp_path / "one"), Recorder(other, tmp_path / "other"):
        greedy(one, None, prompt(20), steps=2)
        greedy(other, None, prompt(30), steps=3)
    assert read_sample(tmp_path / "one").token_count == 21
    assert read_sample(tmp_path / "other").token_count == 32


def test_an_existing_capture_is_not_overwritten(tmp_path: Path) -> None:
    model = shared_model("llama")
    with Recorder(model, tmp_path):
        greedy(model, None, prompt(20), steps=2)
    with pytest.raises(SummaryError, match="has a capture already"):
        Recorder(model, tmp_path)
    with Recorder(model, tmp_path, force=True):
        greedy(model, None, prompt(25), steps=2)
    assert read_sample(tmp_path).summary.prompt_tokens == 25


def test_nothing_recorded_writes_nothing(tmp_path: Path) -> None:
    with Recorder(shared_model("llama"), tmp_path / "empty") as recorder:
        pass
    assert recorder.samples == ()
    assert list_samples(tmp_path / "empty") == []


def test_the_batch_must_keep_its_size(tmp_path: Path) -> None:
    model = shared_model("llama")

    def run() -> None:
        with Recorder(model, tmp_path), torch.no_grad():
            model(prompt(8))
            model(torch.cat([prompt(8), prompt(8)]))

    with pytest.raises(ValueError, match="batch must keep its size"):
        run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [{"max_queries": 0}, {"sink_tokens": -1}, {"recent_tokens": 0}, {"token_mass_every": 0}]
)
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RecorderSettings(**wrong)  # type: ignore[arg-type]


def test_the_size_of_raw_attention_is_known_before(tmp_path: Path) -> None:
    model = shared_model("llama")
    request = RawRequest(max_tokens=100)
    sample = record(model, tmp_path, prompt(40))
    names = [name for name in sample.names if name.startswith("raw.attention")]
    stored = sum(sample.tensor(name).nbytes for name in names)
    assert stored == request.num_bytes(layers=4, query_heads=4, prompt_tokens=40, new_tokens=STEPS - 1)

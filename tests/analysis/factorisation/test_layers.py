"""Real caches: what a text leaves in them, its components, rank sweep, and sensitivity on the logits."""

import json
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicCache

from kvcompress.analysis.factorisation.components import components
from kvcompress.analysis.factorisation.layer_states import TARGETS, cached_text
from kvcompress.analysis.factorisation.rank_sweep import rank_sweep
from kvcompress.analysis.factorisation.ranks import Ranks
from kvcompress.analysis.factorisation.sensitivity import layer_sensitivity, sensitivities
from kvcompress.analysis.factorisation.tucker import decompose
from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.analysis.fidelity.teacher_forcing import text_windows
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.bench.testbed.tasks import make_example
from kvcompress.engine.cache_argument import given_cache

CONTEXT, STEPS = 64, 16


@pytest.fixture(scope="module")
def model() -> Any:
    return load_testbed()[0]


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return text_windows(load_testbed()[1], make_example("needle_8", 200).prompt, context=CONTEXT, steps=STEPS, most=1)


def test_a_text_leaves_its_keys_and_values(model: Any, windows: torch.Tensor) -> None:
    ids = windows[0].tolist()
    found = cached_text(model, ids)
    with torch.inference_mode():
        cache = given_cache(model(input_ids=windows[:1], use_cache=True))
    assert found.left_out == ()
    assert [states.layer for states in found.layers] == list(range(6))
    for states, layer in zip(found.layers, cache.layers, strict=True):
        torch.testing.assert_close(states.of("keys"), layer.keys[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states.of("values"), layer.values[0], atol=1e-4, rtol=1e-4)
    assert [states.layer for states in found.pick([4, 1])] == [1, 4]
    assert found.pick(None) == found.layers
    with pytest.raises(ValueError, match=r"layers must be among those .* got 9"):
        found.pick([0, 9])


def test_layers_that_forget_are_left_out_and_said_so() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=8,
    )
    model = MistralForCausalLM(config).eval()
    assert len(cached_text(model, list(range(5))).layers) == 2
    with pytest.raises(ValueError, match="shorter than its sliding window"):
        cached_text(model, list(range(20)))


def test_components_are_those_of_the_decomposition_and_bounded(model: Any, windows: torch.Tensor) -> None:
    states = cached_text(model, windows[0].tolist()).layers[2]
    ranks = Ranks(token=16, embedding=12, head=2)
    for target in TARGETS:
        found = components(states, target, ranks)
        direct = decompose(states.of(target), ranks)
        assert found.tucker.relative_error == direct.relative_error
        values = torch.linalg.svdvals(states.of(target).double().transpose(0, 1).flatten(1))
        shares = values / values.sum()
        assert found.effective_rank == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-9)
        assert found.stable_rank == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-9)
        content = json.loads(json.dumps(found.to_json(most_shown=5), allow_nan=False))
        assert content["core_shape"] == [2, 16, 12]
        assert content["core"] == direct.core[:5, :5, :5].tolist()
        assert len(content["token_rows"]) == len(content["factors"]["token"]) == 5
        assert content["factors"]["token"][4] == direct.token[-1, :5].tolist()
        assert content["factors"]["head"] is not None
        assert content["bytes"] == direct.num_bytes
        baselines = [svd["relative_error"] for svd in content["svd"].values() if svd]
        assert content["svd_relative_error"] == min(baselines)
        assert all(svd["bytes"] <= content["bytes"] for svd in content["svd"].values() if svd)


def test_a_sweep_s_errors_fall_and_are_those_of_its_ranks(model: Any, windows: torch.Tensor) -> None:
    states = cached_text(model, windows[0].tolist()).layers[0]
    points = rank_sweep(states, "values", fractions=(0.1, 0.3, 0.9))
    errors = [point.relative_error for point in points]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]
    for point in points:
        ranks = Ranks(token=point.token_rank, embedding=point.embedding_rank)
        assert decompose(states.values, ranks).relative_error == point.relative_error
        content = point.to_json()
        assert content["compression_ratio"] == pytest.approx(1 - content["bytes"] / content["full_bytes"])
        json.dumps(content, allow_nan=False)


def test_sensitivity_is_what_a_replaced_cache_does(model: Any, windows: torch.Tensor) -> None:
    ranks = Ranks(token=8, embedding=8)
    found = layer_sensitivity(model, windows, 1, ranks, context=CONTEXT)
    # The same by hand: transformers' own cache with one layer's tensors replaced.
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    talks = [Conversation(model, cache) for cache in caches]
    for talk in talks:
        talk.feed(windows[:, :CONTEXT].tolist())
    layer = caches[1].layers[1]
    errors = []
    for name in TARGETS:
        direct = decompose(getattr(layer, name)[0], ranks)
        errors.append(direct.relative_error)
        setattr(layer, name, direct.reconstruct().float()[None])
    rows = windows[:, CONTEXT:-1].tolist()
    full, changed = (talk.feed(rows, all_logits=True)[0].double().log_softmax(-1) for talk in talks)
    kl = torch.nn.functional.kl_div(changed, full, reduction="none", log_target=True).sum(-1).mean()
    assert found.kl == pytest.approx(float(kl), rel=1e-3)
    assert found.top1 == pytest.approx(float((full.argmax(-1) == changed.argmax(-1)).double().mean()))
    assert [found.relative_error_keys, found.relative_error_values] == pytest.approx(errors, rel=1e-4)
    assert found.to_json()["relative_error"] == pytest.approx(sum(errors) / 2, rel=1e-4)


def test_whole_ranks_change_nothing(model: Any, windows: torch.Tensor) -> None:
    ranks = Ranks(token=CONTEXT, embedding=64)
    for found in sensitivities(model, windows, (0, 5), ranks, context=CONTEXT):
        assert found.kl < 1e-6
        assert found.top1 == 1
        assert found.relative_error < 1e-6
        assert found.perplexity == pytest.approx(found.full_perplexity, rel=1e-4)


def test_a_layer_that_is_not_there_is_refused(model: Any, windows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="layer must be one that the engine compresses; got 6"):
        layer_sensitivity(model, windows, 6, Ranks(token=4, embedding=4), context=CONTEXT)

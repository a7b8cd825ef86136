"""What no graph can serve: it runs as it is, gives the right numbers, and one line says why."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import Cake, CakeCache, CompressedCache, DecodeEvent, Full, SnapKV, make_policy
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.engine.capture import mechanism_for
from kvcompress.engine.decode_graph import tell_once
from tests.kvcompress.engine.architectures import build
from tests.kvcompress.engine.graphs import CAKE, MakeCapturing, check_same_state, decode, graph_cache, plain
from tests.kvcompress.engine.helpers import LONG, SHORT, forward, greedy, left_padded, prompt
from tests.kvcompress.engine.policies import SMALL

STEPS = 5


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    tell_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="kvcompress")
    return caplog


def step(model: PreTrainedModel, cache: CompressedCache, seed: int, **extra: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**({"input_ids": prompt(1, seed)} | extra), **cache_argument(cache)).logits
    return logits


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"output_attentions": True}, "output_attentions is asked for"),
        ({"output_hidden_states": True}, "output_hidden_states is asked for"),
        ({"input_ids": None, "inputs_embeds": torch.full((1, 1, 32), 0.1)}, "inputs_embeds"),
        ({"logits_to_keep": torch.tensor([0])}, "logits_to_keep must be a number"),
        ({"labels": torch.tensor([[3]])}, "the model is given labels"),
        ({"something_else": 1}, "the model is given something_else"),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else None,
)
@pytest.mark.filterwarnings("ignore:.*output_attentions.*")
def test_arguments_that_no_graph_knows(
    make: MakeCapturing,
    own_llama: PreTrainedModel,
    told: pytest.LogCaptureFixture,
    extra: dict[str, Any],
    reason: str,
) -> None:
    cache, stand_in = make()
    reference = plain(own_llama)
    for each in (cache, reference):
        forward(own_llama, each, prompt(LONG))
    for i in range(STEPS):
        assert torch.equal(step(own_llama, cache, i, **extra), step(own_llama, reference, i, **extra))
    assert stand_in.counts == (0, 0, 0)
    assert len(told.messages) == 1
    assert reason in told.messages[0]
    assert torch.equal(decode(own_llama, cache, 9, STEPS), decode(own_llama, reference, 9, STEPS))
    assert stand_in.counts == (1, 1, STEPS - 1)  # what a graph can serve is captured nonetheless
    check_same_state(cache, reference)


def test_an_observer_hears_every_step(
    make: MakeCapturing, own_llama: PreTrainedModel, told: pytest.LogCaptureFixture
) -> None:
    class Heard:
        def __init__(self) -> None:
            self.positions: list[int] = []

        def on_prefill(self, event: Any) -> None: ...

        def on_evict(self, event: Any) -> None: ...

        def on_decode(self, event: DecodeEvent) -> None:
            if event.layer_idx == 0:
                self.positions.append(event.position)

    cache, stand_in = make()
    forward(own_llama, cache, prompt(LONG))
    decode(own_llama, cache, 0, 3)
    heard = Heard()
    cache.add_observer(heard)
    decode(own_llama, cache, 1, 3)
    assert heard.positions == [LONG + 3, LONG + 4, LONG + 5]
    assert "observer" in told.text
    cache.remove_observer(heard)
    decode(own_llama, cache, 2, 2)
    assert stand_in.counts == (1, 1, 4)  # the graph from before the observer still serves


def test_gradients_and_autocast(
    make: MakeCapturing, own_llama: PreTrainedModel, told: pytest.LogCaptureFixture
) -> None:
    cache, stand_in = make()
    forward(own_llama, cache, prompt(LONG))
    assert own_llama(prompt(1), **cache_argument(cache)).logits.requires_grad
    cache.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        own_llama(prompt(LONG), **cache_argument(cache))
        own_llama(prompt(1), **cache_argument(cache))
    assert stand_in.counts == (0, 0, 0)
    assert [("gradients" in message, "autocast" in message) for message in told.messages] == [
        (True, False),
        (False, True),
    ]


def test_layers_that_are_not_compressed(monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture) -> None:
    model = build("gemma3")
    cache, stand_in = graph_cache(model, CAKE, monkeypatch)
    assert torch.equal(greedy(model, cache, prompt(LONG)), greedy(model, plain(model), prompt(LONG)))
    assert stand_in.counts == (0, 0, 0)
    assert len(told.messages) == 1
    assert "compress_sliding=True" in told.messages[0]


def test_a_padded_batch_needs_its_positions(
    make: MakeCapturing, own_llama: PreTrainedModel, told: pytest.LogCaptureFixture
) -> None:
    cache, stand_in = make()
    ids, mask = left_padded([prompt(LONG), prompt(SHORT, 2)])
    forward(own_llama, cache, ids, mask)
    with torch.no_grad():
        own_llama(prompt(2).T, attention_mask=torch.cat([mask, mask[:, -1:]], dim=1), **cache_argument(cache))
    assert stand_in.counts == (0, 0, 0)
    assert "position_ids" in told.text


def test_beam_search(make: MakeCapturing, own_llama: PreTrainedModel, told: pytest.LogCaptureFixture) -> None:
    cache, stand_in = make()
    found = greedy(own_llama, cache, prompt(LONG), num_beams=3)
    assert torch.equal(found, greedy(own_llama, plain(own_llama), prompt(LONG), num_beams=3))
    assert stand_in.captures == 0
    assert len(told.messages) == 1
    assert "beam search" in told.messages[0]


@pytest.mark.parametrize("waits", [1, 2])
def test_steps_that_wait_for_the_device(
    make: MakeCapturing, own_llama: PreTrainedModel, told: pytest.LogCaptureFixture, waits: int
) -> None:
    cache, stand_in = make()
    reference = plain(own_llama)
    stand_in.waits = waits
    for each in (cache, reference):
        forward(own_llama, each, prompt(LONG))
    assert torch.equal(decode(own_llama, cache, 0, 6), decode(own_llama, reference, 0, 6))
    assert stand_in.counts == ((2, 1, 4) if waits == 1 else (2, 0, 0))
    assert len(told.messages) == waits - 1
    check_same_state(cache, reference)


def test_a_capture_that_fails(make: MakeCapturing, own_llama: PreTrainedModel, told: pytest.LogCaptureFixture) -> None:
    cache, stand_in = make()
    reference = plain(own_llama)
    stand_in.failure = "operation not permitted when stream is capturing\nand more"
    for each in (cache, reference):
        forward(own_llama, each, prompt(LONG))
    assert torch.equal(decode(own_llama, cache, 0, 6), decode(own_llama, reference, 0, 6))
    assert stand_in.counts == (1, 0, 0)
    assert len(told.messages) == 1
    assert told.messages[0].endswith("(operation not permitted when stream is capturing)")
    check_same_state(cache, reference)


def test_errors_of_the_engine_are_raised_not_replayed_over(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    cache, _ = make()
    forward(own_llama, cache, prompt(LONG))
    decode(own_llama, cache, 0, 3)
    with pytest.raises(RuntimeError, match="was given a batch of 2"):
        forward(own_llama, cache, prompt(2).T)
    own_llama.train()
    with pytest.raises(RuntimeError, match="inference only"):
        forward(own_llama, cache, prompt(1))
    cache.reset()
    own_llama.eval().set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="no longer attached"):
        forward(own_llama, cache, prompt(1))


def test_a_model_on_the_cpu_or_on_several_gpus_is_refused(own_llama: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"cuda_graph=True needs the model on a GPU; got one on 'cpu'.*to\('cuda'\)"):
        CakeCache(own_llama, **SMALL, cuda_graph=True)
    assert own_llama.config._attn_implementation == "sdpa"
    own_llama.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(ValueError, match=r"whole model on one GPU; got one spread over 0, 1.*device_map"):
        mechanism_for(own_llama)


@pytest.mark.parametrize("policy", [Full(), SnapKV(**SMALL), make_policy("cake_reference", **SMALL)])
def test_policies_without_a_fixed_size_are_refused(make: MakeCapturing, policy: Any) -> None:
    with pytest.raises(ValueError, match="cuda_graph=True, which implies it"):
        make(policy)


def test_cake_cache_passes_it_on(monkeypatch: pytest.MonkeyPatch, own_llama: PreTrainedModel) -> None:
    _, stand_in = graph_cache(own_llama, Cake(**SMALL), monkeypatch)
    cache = CakeCache.from_preset("llama3.1-8b-128k", own_llama, 1024, cuda_graph=True)
    stand_in.cache = cache
    forward(own_llama, cache, prompt(LONG))
    decode(own_llama, cache, 0, 3)
    assert stand_in.counts == (1, 1, 2)

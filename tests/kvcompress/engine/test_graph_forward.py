"""What stands before a model's forward: there for captured steps, and for nothing else."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from kvcompress import CompressedCache, attach, detach
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.engine.graph_forward import GraphForward
from tests.kvcompress.engine.architectures import build
from tests.kvcompress.engine.graphs import CAKE, MakeCapturing, StandIn, decode, graph_cache, plain
from tests.kvcompress.engine.helpers import LONG, MEDIUM, forward, full_cache, greedy, prompt


def test_it_looks_like_the_models_own(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    signature = inspect.signature(own_llama.forward)
    make()
    assert isinstance(own_llama.forward, GraphForward)
    assert inspect.signature(own_llama.forward) == signature
    assert own_llama.forward.__name__ == "forward"
    assert own_llama.forward.__doc__ == type(own_llama).forward.__doc__


def test_only_a_cache_that_captures_puts_it_there(own_llama: PreTrainedModel) -> None:
    plain(own_llama)
    assert "forward" not in own_llama.__dict__


def test_detach_takes_it_away_and_attach_puts_it_back(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    cache, stand_in = make()
    make()
    assert own_llama.forward.inner is None  # only one, however many caches
    forward(own_llama, cache, prompt(LONG))
    decode(own_llama, cache, 0, 3)
    detach(own_llama)
    assert "forward" not in own_llama.__dict__
    with pytest.raises(RuntimeError, match="no longer attached"):
        forward(own_llama, cache, prompt(1))
    cache.reset()
    attach(own_llama)
    forward(own_llama, cache, prompt(LONG))
    decode(own_llama, cache, 0, 3)
    assert stand_in.counts == (2, 2, 4)


def test_a_forward_that_was_set_on_the_model_stays(monkeypatch: pytest.MonkeyPatch, own_llama: PreTrainedModel) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return type(own_llama).forward(own_llama, *args, **kwargs)

    own_llama.forward = counted
    cache, stand_in = graph_cache(own_llama, CAKE, monkeypatch)
    forward(own_llama, cache, prompt(LONG))
    decode(own_llama, cache, 0, 3)
    assert len(calls) == 1 + sum(stand_in.counts)
    detach(own_llama)
    assert own_llama.forward is counted


OTHER_CACHES: dict[str, Callable[[PreTrainedModel], Any]] = {
    "dynamic": full_cache,
    "compressed": lambda model: CompressedCache(model, CAKE),
    "static": plain,
    "none": lambda model: None,
}


@pytest.mark.parametrize("other", OTHER_CACHES)
def test_other_caches_pass_through(make: MakeCapturing, own_llama: PreTrainedModel, other: str) -> None:
    untouched = build("llama")
    expected = greedy(untouched, OTHER_CACHES[other](untouched), prompt(LONG))
    _, stand_in = make()
    assert torch.equal(greedy(own_llama, OTHER_CACHES[other](own_llama), prompt(LONG)), expected)
    assert stand_in.counts == (0, 0, 0)


def test_transformers_does_not_compile_what_is_captured(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    captured, static = make()[0], plain(own_llama)
    for cache in (captured, static):
        forward(own_llama, cache, prompt(LONG))
    assert static.is_compileable
    assert not captured.is_compileable


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_model_has_its_own(
    make: MakeCapturing, own_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, copied: Any
) -> None:
    cache, stand_in = make()
    other = copied(own_llama)
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    assert other.forward is not own_llama.forward
    found, expected = (forward(model, DynamicCache(), prompt(MEDIUM)) for model in (other, own_llama))
    assert torch.equal(found, 2 * expected)
    forward(own_llama, cache, prompt(LONG))
    decode(own_llama, cache, 0, 3)
    decode(other, cache, 0, 3)  # one cache, another model: never the first one's graph
    assert stand_in.counts == (2, 2, 4)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")  # its name until transformers 6
def test_gradient_checkpointing_trains_as_before(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    def gradient(model: PreTrainedModel) -> torch.Tensor:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        model(prompt(MEDIUM), labels=prompt(MEDIUM), use_cache=False).loss.backward()
        weight = model.model.layers[0].mlp.up_proj.weight
        assert weight.grad is not None
        return weight.grad

    make()
    torch.testing.assert_close(gradient(own_llama), gradient(build("llama")))


class Forgetful(StandIn):
    """Keeps nothing of a captured step but its output, as CUDA does."""

    def capture(self, step: Any, device: torch.device) -> Any:
        captured = super().capture(step, device)
        captured.step = lambda: captured.output
        self.cache = None
        return captured


def test_neither_model_nor_cache_waits_for_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    gc.disable()
    try:
        model = build("llama")
        cache, _ = graph_cache(model, CAKE, monkeypatch, mechanism=Forgetful())
        monkeypatch.undo()
        forward(model, cache, prompt(LONG))
        decode(model, cache, 0, 3)
        assert cache.decode_graph is not None
        assert cache.decode_graph.captured
        alive = weakref.ref(model), weakref.ref(cache), weakref.ref(cache.layer(0).store)
        del model
        assert alive[0]() is None
        del cache
        assert alive[1]() is None
        assert alive[2]() is None
    finally:
        gc.enable()


def test_the_forward_of_a_model_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    graph_cache(model, CAKE, monkeypatch)
    stray = model.forward
    del model
    gc.collect()
    with pytest.raises(ReferenceError, match="hold the model"):
        stray(prompt(1))


def test_a_compiled_step_of_a_static_cache_goes_through(make: MakeCapturing, own_llama: PreTrainedModel) -> None:
    torch._dynamo.reset()
    make()
    other = build("llama")
    static, reference = plain(own_llama), plain(other)
    forward(own_llama, static, prompt(LONG))
    forward(other, reference, prompt(LONG))

    def step(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = own_llama(token, position_ids=position, **cache_argument(static)).logits
        return logits

    compiled: Any = torch.compile(step, fullgraph=True, backend="eager")
    with torch.no_grad():
        for i in range(3):
            position = torch.tensor([[LONG + i]])
            expected = other(prompt(1, i), position_ids=position, **cache_argument(reference)).logits
            torch.testing.assert_close(compiled(prompt(1, i), position), expected)
    torch._dynamo.reset()

"""Models that run under ``torch.autocast``: what is stored, and in which precision the engine computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress import Cake, CompressedCache, Observer, PrefillEvent
from kvcompress.kernels.window_scores.reference import window_scores_reference
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import LONG, STEPS, difference, forward, full_cache, prompt, stored_dtypes
from tests.kvcompress.engine.policies import ALL_POLICIES, NO_EVICTION_POLICIES, SMALL, WINDOW, new_cache

BFLOAT16 = 6e-2  # some ten roundings of logits of order one


def autocast(on: bool = True) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else nullcontext()


def turns(model: PreTrainedModel, cache: object, under: tuple[bool, bool, bool]) -> torch.Tensor:
    """Logits of a prompt, of a block after it and of decoded tokens, each under autocast or not."""
    with autocast(under[0]):
        logits = [forward(model, cache, prompt(LONG))[:, -1:]]
    with autocast(under[1]):
        logits.append(forward(model, cache, prompt(20, 1)))
    with autocast(under[2]):
        logits += [forward(model, cache, prompt(1, 2 + step)) for step in range(STEPS)]
    return torch.cat([part.float() for part in logits], dim=1)


# CakeReference reproduces code that knows no softcap and no sliding windows, and says so (see test_refusals).
CASES = [(name, policy) for name in ("llama", "llama-eager") for policy in ALL_POLICIES] + [
    (name, policy) for name in ("gemma2", "gemma3") for policy in ALL_POLICIES if policy != "cake-reference"
]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_a_float32_model_under_autocast(name: str, policy: str) -> None:
    model = shared_model(name)
    cache = new_cache(model, policy, compress_sliding="gemma" in name)
    found = turns(model, cache, (True, True, True))
    assert torch.isfinite(found).all()
    assert stored_dtypes(cache) == {torch.bfloat16}
    if policy in NO_EVICTION_POLICIES:
        assert difference(found, turns(model, full_cache(model), (True, True, True))) <= BFLOAT16


@pytest.mark.parametrize(
    "under", [(True, False, False), (False, True, True), (True, False, True), (False, False, True)]
)
def test_autocast_may_come_and_go(under: tuple[bool, bool, bool], llama: PreTrainedModel) -> None:
    cache = CompressedCache(llama, NO_EVICTION_POLICIES["snapkv-large"]())
    found = turns(llama, cache, under)
    assert stored_dtypes(cache) == {torch.bfloat16 if under[0] else torch.float32}
    assert difference(found, turns(llama, full_cache(llama), under)) <= BFLOAT16


def test_a_float64_model_stays_in_float64() -> None:
    model = shared_model("llama")
    exact = type(model)(model.config).double().eval()
    cache = CompressedCache(exact, Cake(**SMALL), backend="torch")
    forward(exact, cache, prompt(LONG))
    assert stored_dtypes(cache) == {torch.float64}


class Listener(Observer):
    """Notes whether autocast is on whenever it is called, and keeps the prefill's events."""

    def __init__(self) -> None:
        self.prefills: list[PrefillEvent] = []
        self.autocast: list[bool] = []

    def _note(self, _: Any) -> None:
        self.autocast.append(torch.is_autocast_enabled("cpu"))

    on_decode = on_evict = _note

    def on_prefill(self, event: PrefillEvent) -> None:
        self._note(event)
        self.prefills.append(event)


def test_statistics_are_not_rounded_to_16_bits() -> None:
    model = shared_model("llama-eager")  # gives no log-sum-exp: all is computed by the engine
    cache, listener = CompressedCache(model, Cake(**SMALL)), Listener()
    cache.add_observer(listener)
    turns(model, cache, (True, True, True))
    assert len(listener.autocast) > 3 * len(cache.layers)
    assert not any(listener.autocast)
    for event in listener.prefills[: len(cache.layers)]:
        exact = window_scores_reference(
            event.query[:, :, -WINDOW:].double(), event.keys.double(), spec=event.spec, scored=LONG - WINDOW
        )
        torch.testing.assert_close(event.scores.entropy.double(), exact.entropy, rtol=2e-6, atol=0)
        torch.testing.assert_close(event.scores.variance.double(), exact.total_variance, rtol=2e-6, atol=0)

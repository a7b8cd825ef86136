"""Tiny models run fastest on one thread."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from kvcompress.kernels.dispatch import interpreting
from tests.kvcompress.engine.architectures import architecture_marks, build, shared_model
from tests.kvcompress.engine.graphs import CAKE, MakeCapturing, graph_cache
from tests.kvcompress.engine.policies import MODELS


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def wide_tiles() -> Iterator[None]:
    """Lets interpreted decode steps take all slots of a split at once, which takes a third off their time.

    On a GPU the registers limit a tile; the tests of the kernels themselves run with the tiles that a GPU gets.
    """
    if not interpreting():
        yield
        return
    from kvcompress.kernels.decode_attend import launch

    with pytest.MonkeyPatch.context() as patch:
        tile = launch.decode_tile
        patch.setattr(launch, "decode_tile", lambda *given: replace(tile(*given), block_n=launch.LEAST_SPLIT))
        yield


@pytest.fixture(params=[pytest.param(name, marks=architecture_marks(name)) for name in MODELS])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return shared_model(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return shared_model("llama")


@pytest.fixture
def own_llama() -> PreTrainedModel:
    """A model that a test may change."""
    return build("llama")


@pytest.fixture
def make(own_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> MakeCapturing:
    """Makes caches of `own_llama` with ``cuda_graph=True``, each with what captures for it."""
    return lambda policy=CAKE, **options: graph_cache(own_llama, policy, monkeypatch, **options)

"""An edited cache on every architecture that the engine compresses: unchanged it changes nothing, and it prunes."""

import json

import pytest
import torch
from transformers.cache_utils import DynamicCache

from kvcompress.analysis.factorisation.layer_states import cached_text
from kvcompress.analysis.factorisation.ranks import Ranks
from kvcompress.analysis.factorisation.sensitivity import sensitivities
from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.analysis.pruning.edited_cache import Edited, EditedCache, PromptStates
from kvcompress.analysis.pruning.importance import importance_json
from kvcompress.analysis.pruning.plan import WHATS
from kvcompress.analysis.pruning.simulate import PruningSimulation
from tests.kvcompress.engine.architectures import ARCHITECTURES, VOCABULARY, shared_model

PROMPT, STEPS = 40, 8  # longer than the sliding windows
ROUNDING = 2e-4  # of float32 logits of order ten


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(3, 90, (1, PROMPT + STEPS + 1), generator=torch.Generator().manual_seed(0)) % VOCABULARY


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_unchanged_cache_is_the_full_one(name: str, windows: torch.Tensor) -> None:
    model = shared_model(name)

    def unchanged(states: PromptStates) -> Edited:
        return Edited(keys=states.keys, values=states.values)

    full = Conversation(model, DynamicCache(config=model.config))
    edited = Conversation(model, EditedCache(model, unchanged))
    for begin, end in ((0, PROMPT), (PROMPT, PROMPT + 1), (PROMPT + 1, PROMPT + 4), (PROMPT + 4, PROMPT + STEPS)):
        rows = windows[:, begin:end].tolist()
        wanted, got = full.feed(rows, all_logits=True), edited.feed(rows, all_logits=True)
        torch.testing.assert_close(got, wanted, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_prunes(name: str, windows: torch.Tensor) -> None:
    simulation = PruningSimulation(shared_model(name), windows, context=PROMPT)
    for what in WHATS:
        none, half = simulation.point(what, 0.0), simulation.point(what, 0.5)
        assert none.kl < 1e-5
        assert half.kl > none.kl
        assert 0 < half.kv_bytes < half.full_bytes
    content = json.loads(json.dumps(importance_json(simulation.importance[0], most_tokens=10), allow_nan=False))
    assert content["token_positions"] == [0, 4, 8, 13, 17, 21, 26, 30, 34, 39]
    assert {len(row) for row in content["tokens"]} == {10}
    for row in content["tokens"]:
        assert row[-1] is None
        assert None not in row[4:5]  # position 17 is in every window, and observed


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss", "qwen3-next", "mistral-sliding", "llava"])
def test_layers_of_low_rank_are_measured(name: str, windows: torch.Tensor) -> None:
    model = shared_model(name)
    short = windows[:, :22]  # within the sliding windows, so that every layer keeps it whole
    layers = cached_text(model, short[0, :16].tolist()).layers
    for found in sensitivities(
        model, short, [states.layer for states in layers], Ranks(token=2, embedding=2), context=16
    ):
        assert found.relative_error > 0.1
        assert found.kl > 0

"""Similarities of a real cache: each part is what its function says, bounded, and fit for JSON."""

import json
from typing import Any

import pytest
import torch

from kvcompress.analysis.factorisation.layer_states import TARGETS, LayerStates, cached_text
from kvcompress.analysis.similarity.cache_similarity import cache_similarity
from kvcompress.analysis.similarity.cka import linear_cka
from kvcompress.analysis.similarity.cosine import cosine_matrix, head_cosine, token_vectors
from kvcompress.bench.testbed.location import load_testbed


@pytest.fixture(scope="module")
def layers() -> tuple[LayerStates, ...]:
    model: Any = load_testbed()[0]
    ids = torch.randint(259, 900, (48,), generator=torch.Generator().manual_seed(0)).tolist()
    return cached_text(model, [1, *ids]).layers


def test_parts_are_what_their_functions_say(layers: tuple[LayerStates, ...]) -> None:
    found = cache_similarity(layers, most_tokens=7, thresholds=(0.5, 0.9))
    positions = found.token_positions
    assert positions.tolist() == [0, 8, 16, 24, 32, 40, 48]
    for place, (states, target) in enumerate((states, target) for states in layers for target in TARGETS):
        layer, tensor = found.layers[place], states.of(target)
        assert (layer.layer, layer.target) == (states.layer, target)
        whole = cosine_matrix(token_vectors(tensor))
        torch.testing.assert_close(layer.token_cosine, whole[positions][:, positions])
        others = whole[~torch.eye(49, dtype=torch.bool)]
        assert layer.mean_token_cosine == pytest.approx(float(others.mean()))
        nearest = whole.clone().fill_diagonal_(-1).amax(-1)
        assert layer.redundancy == tuple(float((nearest > t).double().mean()) for t in (0.5, 0.9))
        torch.testing.assert_close(layer.head_cosine, head_cosine(tensor))
        torch.testing.assert_close(layer.head_cka, linear_cka(list(tensor)))
    for target in TARGETS:
        cka = found.layer_cka[target]
        assert torch.allclose(cka.diagonal(), torch.ones(6, dtype=torch.float64))
        assert found.layer_cosine[target] is not None


def test_it_is_fit_for_json(layers: tuple[LayerStates, ...]) -> None:
    content = json.loads(json.dumps(cache_similarity(layers[:2]).to_json(), allow_nan=False))
    assert content["layer_indices"] == [0, 1]
    assert len(content["layers"]) == 4
    assert len(content["layers"][0]["token_cosine"]) == len(content["token_positions"]) == 49
    assert set(content["between_layers"]) == {"keys", "values"}
    assert [entry["threshold"] for entry in content["layers"][0]["redundancy"]] == [0.9, 0.95, 0.99]


def test_layers_of_other_shapes_have_cka_alone(layers: tuple[LayerStates, ...]) -> None:
    narrow = LayerStates(layer=1, keys=layers[1].keys[:1], values=layers[1].values)
    found = cache_similarity([layers[0], narrow])
    assert found.layer_cosine["keys"] is None
    assert found.layer_cosine["values"] is not None
    assert found.layer_cka["keys"].shape == (2, 2)
    assert found.to_json()["between_layers"]["keys"]["cosine"] is None


def test_no_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="layers must hold at least one layer"):
        cache_similarity([])

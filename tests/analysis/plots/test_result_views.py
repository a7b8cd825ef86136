"""Views of tucker.json, similarity.json and pruning.json show what stands in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvcompress.analysis.plots import pruning, similarities, tucker
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.plots.result_views import RESULT_VIEWS
from kvcompress.analysis.plots.results import read_results
from tests.analysis.plots.reading import bar_heights, image_values, line_values, panel, texts_of

MODEL = {"name": "a <model>", "device": "cpu", "dtype": "float32"}
TARGETS = ("keys", "values")


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, shape).tolist()


def tucker_results() -> dict[str, Any]:
    rows = [
        {
            "layer": layer,
            "target": target,
            "core_shape": [2, 4, 3],
            "core": random(2, 4, 3, seed=layer),
            "factors": {"token": random(8, 4), "embedding": random(6, 3), "head": None},
            "token_rows": [0, 3, 6, 9, 12, 15, 18, 21],
            "embedding_rows": list(range(6)),
            "relative_error": 0.1 * layer + 0.2,
            "svd_relative_error": None if layer == 1 else 0.15,
        }
        for layer in (0, 1, 5)
        for target in TARGETS
    ]
    sweep = [
        {
            "layer": layer,
            "target": target,
            "fraction": f,
            "relative_error": 1 - f + layer / 10,
            "compression_ratio": 1 - f,
        }
        for layer in (0, 1)
        for target in TARGETS
        for f in (0.5, 0.25)
    ]
    sensitivity = [
        {"layer": i, "relative_error": 0.3, "relative_error_keys": 0.2, "relative_error_values": 0.4, "kl": i / 100}
        | {"top1": 1 - i / 10}
        for i in (0, 1, 5)
    ]
    return {"schema": "kvcompress.tucker/1", "model": MODEL, "tokens": 24, "layers": rows, "rank_sweep": sweep} | {
        "sensitivity": sensitivity
    }


def similarity_results() -> dict[str, Any]:
    rows = [
        {
            "layer": layer,
            "target": target,
            "token_cosine": random(5, 5, seed=layer),
            "mean_token_cosine": None if layer else 0.25,
            "head_cosine": random(2, 2),
            "head_cka": random(2, 2, seed=3),
            "redundancy": [{"threshold": 0.9, "share": 0.5 + layer / 10}, {"threshold": 0.99, "share": 0.1}],
        }
        for layer in (0, 2)
        for target in TARGETS
    ]
    between = {"cosine": None, "cka": random(2, 2, seed=7)}
    return {
        "schema": "kvcompress.similarity/1",
        "model": MODEL,
        "tokens": 24,
        "token_positions": [0, 6, 12, 18, 23],
        "layers": rows,
        "layer_indices": [0, 2],
        "between_layers": {"keys": between, "values": between},
    }


def pruning_results() -> dict[str, Any]:
    points = [
        {"what": what, "order": order, "seed": seed, "dropped": dropped, "units": 8, "kl": dropped / 8 + (seed or 0)}
        | {"top1": 1 - dropped / 10}
        for what in ("heads", "tokens", "layers")
        for order, seed in (("least_important", None), ("random", 0), ("random", 2))
        for dropped in (4, 2)
    ]
    importance = {"layers": [0.1, 0.2], "heads": random(2, 4), "heads_unit": "KL without the head, nats"}
    return {"schema": "kvcompress.pruning/1", "model": MODEL, "tokens": 24, "context": 16, "steps": 8} | {
        "layer_indices": [0, 2],
        "points": points,
        "importance": importance,
    }


class TestTucker:
    def test_components(self) -> None:
        results = tucker_results()
        figure = tucker.tucker_components(results)
        first = results["layers"][0]
        core = np.linalg.norm(np.array(first["core"]), axis=0)
        np.testing.assert_allclose(image_values(panel(figure, "Core (layer 0, keys)")), core)
        np.testing.assert_array_equal(image_values(panel(figure, "Token factor")), first["factors"]["token"])
        np.testing.assert_array_equal(image_values(panel(figure, "Embedding factor")), first["factors"]["embedding"])
        errors = panel(figure, "Error by layer")
        np.testing.assert_allclose(line_values(errors, "keys: Tucker"), [0.2, 0.3, 0.7])
        np.testing.assert_allclose(line_values(errors, "keys: SVD, same bytes"), [0.15, np.nan, 0.15])
        assert [tick.get_text() for tick in errors.get_xticklabels()] == ["0", "1", "5"]
        np.testing.assert_allclose(line_values(panel(figure, "Rank sweep"), "keys"), [0.8, 0.55])
        assert "a <model>: 24 tokens, core 2 × 4 × 3" in figure.get_suptitle()

    def test_sensitivity(self) -> None:
        figure = tucker.layer_sensitivity(tucker_results())
        np.testing.assert_allclose(bar_heights(figure.axes[1]), [0, 0.01, 0.05])
        np.testing.assert_allclose(bar_heights(figure.axes[2]), [0, 10, 50])
        assert "nats per token" in texts_of(figure)

    def test_sensitivity_that_was_not_measured(self) -> None:
        with pytest.raises(NothingToDrawError, match="without --no-sensitivity"):
            tucker.layer_sensitivity(tucker_results() | {"sensitivity": None})


class TestSimilarity:
    def test_tokens(self) -> None:
        results = similarity_results()
        figure = similarities.token_similarity(results, 0)
        np.testing.assert_array_equal(
            image_values(panel(figure, "Keys, mean of all pairs 0.25")), results["layers"][0]["token_cosine"]
        )
        assert "5 of 24 tokens" in figure.get_suptitle()
        assert panel(similarities.token_similarity(results, 2), "Values").get_title(loc="left") == "Values"

    def test_heads(self) -> None:
        results = similarity_results()
        figure = similarities.head_similarity(results, 2)
        np.testing.assert_array_equal(
            image_values(panel(figure, "Values: linear CKA")), results["layers"][3]["head_cka"]
        )

    def test_layers_without_a_cosine(self) -> None:
        """Layers of different shapes have a CKA only."""
        results = similarity_results()
        figure = similarities.between_layers(results)
        assert "cosine" not in texts_of(figure)
        axes = panel(figure, "Keys: linear CKA")
        np.testing.assert_array_equal(image_values(axes), results["between_layers"]["keys"]["cka"])
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "2"]

    def test_redundancy(self) -> None:
        axes = panel(similarities.redundancy(similarity_results()), "Values")
        np.testing.assert_allclose(line_values(axes, "above 0.9"), [0.5, 0.7])

    def test_a_layer_that_is_not_in_it(self) -> None:
        with pytest.raises(ValueError, match="layer must be one of 0, 2; got 1"):
            similarities.head_similarity(similarity_results(), 1)


class TestPruning:
    def test_curves_ascend_and_random_orders_are_averaged(self) -> None:
        results = pruning_results()
        figure = pruning.pruning_divergence(results)
        axes = panel(figure, "Heads")
        np.testing.assert_allclose(line_values(axes, "least important first"), [0.25, 0.5])
        np.testing.assert_allclose(line_values(axes, "random"), [1.25, 1.5])
        agreement = panel(pruning.pruning_agreement(results), "Tokens")
        np.testing.assert_allclose(line_values(agreement, "random"), [80, 60])
        assert agreement.get_ylabel() == "same likeliest token (%)"

    def test_importance(self) -> None:
        results = pruning_results()
        figure = pruning.pruning_importance(results)
        np.testing.assert_array_equal(image_values(panel(figure, "KV heads")), results["importance"]["heads"])
        assert [bar.get_width() for bar in panel(figure, "Layers").patches] == [0.1, 0.2]
        assert "KL without the head, nats" in [axes.get_ylabel() for axes in figure.axes]

    def test_a_divergence_that_was_not_finite_leaves_a_gap(self) -> None:
        results = pruning_results()
        results["points"][0]["kl"] = None
        values = line_values(panel(pruning.pruning_divergence(results), "Heads"), "least important first")
        np.testing.assert_array_equal(np.isnan(values), [False, True])

    def test_nothing_measured(self) -> None:
        with pytest.raises(NothingToDrawError, match=r"pruning\.json has none"):
            pruning.pruning_divergence(pruning_results() | {"points": []})


ALL = {"tucker": tucker_results(), "similarity": similarity_results(), "pruning": pruning_results()}


@pytest.mark.parametrize("name", RESULT_VIEWS)
def test_every_view_has_units_and_draws_without_warnings(name: str, tmp_path: Path) -> None:
    view = RESULT_VIEWS[name]
    figure = view.draw(ALL[view.results], 2)
    assert all(axes.get_ylabel() or axes.get_xlabel() for axes in figure.axes if axes.get_visible() and axes.has_data())
    figure.savefig(tmp_path / "picture.png")


class TestFiles:
    @pytest.mark.parametrize("name", ALL)
    def test_read(self, name: str, tmp_path: Path) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps(ALL[name]), encoding="utf-8")
        assert read_results(tmp_path, name) == ALL[name]

    def test_none_there_says_what_writes_it(self, tmp_path: Path) -> None:
        with pytest.raises(NothingToDrawError, match=r"pruning\.json.*`kvcompress prune`"):
            read_results(tmp_path, "pruning")

    @pytest.mark.parametrize(
        ("text", "message"),
        [("{", "must be JSON"), ("[]", "it has 'list'"), ('{"schema": "kvcompress.tucker/2"}', "kvcompress.tucker/2")],
    )
    def test_damaged_ones(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "tucker.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_results(tmp_path, "tucker")

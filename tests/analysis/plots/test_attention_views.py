"""Views of attention show what is stored."""

import numpy as np
import pytest
import torch

from kvcompress.analysis.plots import entropy, heatmaps, over_time
from kvcompress.analysis.plots.attention_map import attention_map
from kvcompress.analysis.plots.bins import per_token
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.plots.conftest import GENERATED, PROMPT
from tests.analysis.plots.reading import image_values, line_values, mesh_of, mesh_values, panel, texts_of

EXACT = {"rtol": 1e-6, "atol": 1e-9}


def stored(sample: Sample, name: str) -> np.ndarray:
    return sample.tensor(name).double().numpy()


def assert_shown(drawn: np.ndarray, values: np.ndarray, largest: float | None = None) -> None:
    """Equal where something is drawn; blank only where there is nothing, or four decades below the largest."""
    blank = np.isnan(drawn)
    np.testing.assert_allclose(drawn[~blank], values[~blank], **EXACT)
    assert not (np.nan_to_num(values)[blank] > (largest or np.nanmax(values)) / 1e4).any()


class TestHeatmaps:
    def test_map_of_queries_and_keys(self, compressed: Sample) -> None:
        figure = heatmaps.attention_heatmap(compressed, 1, 0, 2)
        axes = figure.axes[0]
        wanted = attention_map(compressed, 1, 0, 2)
        assert_shown(mesh_values(axes), wanted.values)
        corners = np.asarray(mesh_of(axes).get_coordinates())
        np.testing.assert_array_equal(corners[0, :, 0], wanted.key_edges)
        np.testing.assert_array_equal(corners[:, 0, 1], wanted.query_edges)
        assert axes.get_ylim() == (PROMPT, 0)  # the first query at the top
        said = texts_of(figure)
        for words in ("layer 1", "step 0 (prefill, 100 queries)", "head 2", "64 × 64 bins", "position (token)"):
            assert words in said
        assert "attention probability per key token" in said

    def test_title_says_where_raw_attention_is_shown(self, raw: Sample) -> None:
        figure = heatmaps.attention_heatmap(raw, 1, 0)
        assert "raw attention" in figure.get_suptitle()
        assert_shown(mesh_values(figure.axes[0]), raw.raw_attention(0, 1).double().mean(0).numpy())

    @pytest.mark.parametrize("head", [None, 3])
    def test_single_query_is_a_profile_with_all_heads_below(self, compressed: Sample, head: int | None) -> None:
        figure = heatmaps.attention_heatmap(compressed, 0, 2, head)
        (profile,) = figure.axes[0].patches
        wanted = attention_map(compressed, 0, 2, head)
        np.testing.assert_array_equal(profile.get_data().values, wanted.values[0])
        by_head, _ = per_token(stored(compressed, "attention.position_mass")[2, 0], PROMPT + 2)
        assert_shown(mesh_values(figure.axes[1]), by_head)

    def test_step_of_all_layers(self, compressed: Sample) -> None:
        figure = heatmaps.step_heatmap(compressed, 4)
        by_layer, _ = per_token(stored(compressed, "attention.position_mass")[4].mean(1), PROMPT + 4)
        assert_shown(mesh_values(figure.axes[0]), by_layer)
        assert figure.axes[0].get_ylabel() == "layer"

    def test_layers_beside_each_other(self, compressed: Sample) -> None:
        figure = heatmaps.layer_comparison(compressed)
        maps = [attention_map(compressed, layer, 0).values for layer in range(3)]
        for layer, values in enumerate(maps):
            axes = panel(figure, f"layer {layer}")
            assert_shown(mesh_values(axes), values, np.nanmax(maps))
            assert mesh_of(axes).norm.vmax == mesh_of(panel(figure, "layer 0")).norm.vmax

    def test_heads_beside_each_other(self, compressed: Sample) -> None:
        figure = heatmaps.head_comparison(compressed, 2)
        maps = [attention_map(compressed, 2, 0, head).values for head in range(4)]
        for head, values in enumerate(maps):
            assert_shown(mesh_values(panel(figure, f"head {head}")), values, np.nanmax(maps))

    def test_single_queries_beside_each_other(self, compressed: Sample) -> None:
        figure = heatmaps.head_comparison(compressed, 2, 5)
        for head in range(4):
            (profile,) = panel(figure, f"head {head}").patches
            np.testing.assert_array_equal(profile.get_data().values, attention_map(compressed, 2, 5, head).values[0])


class TestOverTime:
    def test_last_step_has_its_own_bins(self, compressed: Sample) -> None:
        drawn = mesh_values(over_time.alone(over_time.over_time)(compressed).axes[0])
        last, edges = per_token(stored(compressed, "attention.position_mass")[-1].mean((0, 1)), PROMPT + GENERATED)
        assert drawn.shape == (GENERATED + 1, len(edges) - 1)
        assert_shown(drawn[-1], last)
        assert np.isnan(drawn[0, -1])  # the last tokens are not there yet
        assert not np.isnan(drawn[-1, -1])

    def test_recent_and_distant(self, compressed: Sample) -> None:
        axes = over_time.alone(over_time.recent_vs_distant)(compressed).axes[0]
        recent = stored(compressed, "attention.recent_mass").mean((1, 2))
        np.testing.assert_allclose(line_values(axes, "recent: less than 32 tokens away"), recent, **EXACT)
        np.testing.assert_allclose(line_values(axes, "distant: all other tokens"), 1 - recent, atol=1e-6)
        sinks = stored(compressed, "attention.sink_mass").mean((1, 2))
        np.testing.assert_allclose(line_values(axes, "first 4 tokens"), sinks, **EXACT)

    def test_growth(self, compressed: Sample, full: Sample) -> None:
        axes = over_time.alone(over_time.sequence_growth)(compressed).axes[0]
        np.testing.assert_array_equal(line_values(axes, "seen"), PROMPT + np.arange(GENERATED + 1))
        for layer in range(3):
            held = compressed.tensor("compression.held")[:, layer].double().mean(1).numpy()
            np.testing.assert_array_equal(line_values(axes, f"held, layer {layer}"), held)
        axes = over_time.alone(over_time.sequence_growth)(full).axes[0]
        assert "holds all tokens" in axes.get_title(loc="left")

    def test_distances(self, compressed: Sample) -> None:
        axes = over_time.alone(over_time.distance_profile)(compressed).axes[0]
        queries = compressed.tensor("event.queries").double()
        mass = (compressed.tensor("attention.distance_mass").double() * queries[:, None, None, None]).sum(0)
        wanted = (mass / queries.sum()).mean(1).numpy()
        names = [tick.get_text() for tick in axes.get_xticklabels()]
        assert names == ["0", "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127"]
        for layer in range(3):
            np.testing.assert_allclose(line_values(axes, f"layer {layer}"), wanted[layer, :8], rtol=1e-6)
        assert wanted[:, 8:].sum() == 0

    def test_cumulative_mass_marks_80_and_90_percent(self, full: Sample) -> None:
        shares, percent = over_time.coverage_curve(full)
        assert list(percent) == [50, 80, 90, 95, 99, 100]
        queries = full.tensor("event.queries").double()[:, None]
        needed = (
            100 * full.tensor("attention.coverage").double()[..., 1].mean(2) / full.tensor("attention.keys").double()
        )
        np.testing.assert_allclose(shares[:, 1], ((needed * queries).sum(0) / queries.sum()).numpy())
        said = texts_of(over_time.alone(over_time.cumulative_mass)(full))
        for mark, at in ((80, shares[:, 1].mean()), (90, shares[:, 2].mean())):
            assert f"{mark} % of the mass: {at:.3g} % of the keys" in said

    def test_sheet_has_the_five_panels(self, compressed: Sample) -> None:
        figure = over_time.comprehensive(compressed)
        for title in ("Attention over time", "Recent and", "Sequence growth", "Attention by relative", "Cumulative"):
            assert panel(figure, title).has_data()


class TestEntropy:
    def test_evolution(self, compressed: Sample) -> None:
        figure = entropy.entropy_evolution(compressed)
        for axes, name in zip(figure.axes, ("entropy", "entropy_normalised"), strict=False):
            by_layer = stored(compressed, f"attention.{name}").mean(2)
            for layer in range(3):
                np.testing.assert_allclose(line_values(axes, f"layer {layer}"), by_layer[:, layer], **EXACT)
        assert figure.axes[0].get_ylabel() == "entropy (nats)"

    def test_heads_of_a_layer(self, compressed: Sample) -> None:
        figure = entropy.entropy_variance(compressed, 1)
        for axes, name in zip(figure.axes, ("entropy", "variance"), strict=True):
            values = stored(compressed, f"attention.{name}")[:, 1]
            for head in range(4):
                np.testing.assert_allclose(line_values(axes, f"head {head}"), values[:, head], **EXACT)
            np.testing.assert_allclose(line_values(axes, "mean"), values.mean(1), **EXACT)

    def test_layers_and_heads(self, compressed: Sample) -> None:
        figure = entropy.layer_head_analysis(compressed)
        queries = compressed.tensor("event.queries").double()[:, None, None]
        for title, name in (("Entropy", "entropy_normalised"), ("Largest", "maximum"), ("Mass on", "sink_mass")):
            values = compressed.tensor(f"attention.{name}").double()
            wanted = (values * queries).sum(0) / queries.sum()
            np.testing.assert_allclose(image_values(panel(figure, title)), wanted.numpy(), rtol=1e-6)

    def test_a_layer_that_there_is_not(self, compressed: Sample) -> None:
        with pytest.raises(ValueError, match=r"layer must be in 0\.\.2; got 9"):
            entropy.entropy_variance(compressed, 9)


def test_layers_are_those_of_the_model(compressed: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture of some layers: they keep their numbers."""
    some = compressed.summary.model_copy(update={"layer_indices": (4, 9, 11)})
    monkeypatch.setattr(compressed, "summary", some)
    assert "layer 9" in heatmaps.attention_heatmap(compressed, 9, 0).get_suptitle()
    assert_shown(mesh_values(panel(heatmaps.layer_comparison(compressed), "layer 11")), attention_map_of(compressed, 2))
    with pytest.raises(ValueError, match="layer must be one of 4, 9, 11; got 1"):
        heatmaps.attention_heatmap(compressed, 1, 0)


def attention_map_of(sample: Sample, place: int) -> np.ndarray:
    return per_token(sample.tensor("heatmap.mass")[0, place].double().mean(0).numpy(), PROMPT)[0]


def test_nan_attention_is_blank(compressed: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = compressed.tensor
    monkeypatch.setattr(
        compressed, "tensor", lambda name: torch.full_like(tensor(name), torch.nan) if "_mass" in name else tensor(name)
    )
    assert np.isnan(mesh_values(heatmaps.step_heatmap(compressed, 0).axes[0])).all()
    assert np.isnan(mesh_values(over_time.alone(over_time.over_time)(compressed).axes[0])).all()

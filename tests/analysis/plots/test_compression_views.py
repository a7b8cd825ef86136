"""Views of compression, keys, values and tokens show what is stored."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from kvcompress.analysis.plots import compression, embeddings, eviction, heads, layers, tokens
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.plots.conftest import GENERATED, PROMPT
from tests.analysis.plots.reading import bar_heights, image_values, line_values, mesh_values, panel, texts_of
from tests.analysis.samples import write_sample


def stored(sample: Sample, name: str) -> np.ndarray:
    return sample.tensor(name).double().numpy()


class TestCompression:
    def test_budgets_and_what_the_allocation_saw(self, compressed: Sample) -> None:
        figure = compression.preference_scores(compressed)
        for title, name in (("Pref", "preference"), ("Budget", "budget"), ("Entropy", "entropy"), ("Var", "variance")):
            np.testing.assert_allclose(bar_heights(panel(figure, title)), stored(compressed, f"compression.{name}"))
        assert panel(figure, "Budget").get_ylabel() == "tokens kept per head"

    def test_policy_without_preferences_has_its_budgets_only(
        self, compressed: Sample, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tensor = compressed.tensor
        without = {"compression.preference", "compression.entropy", "compression.variance"}
        monkeypatch.setattr(compressed, "tensor", lambda name: tensor(name) * (float("nan") if name in without else 1))
        shown = [axes for axes in compression.preference_scores(compressed).axes if axes.get_visible()]
        assert [axes.get_title(loc="left") for axes in shown] == ["Budget"]

    def test_ratios(self, compressed: Sample) -> None:
        figure = compression.compression_ratios(compressed)
        held = stored(compressed, "compression.held").mean(2)
        removed = 1 - held / stored(compressed, "event.tokens")[:, None]
        for layer in range(3):
            drawn = line_values(panel(figure, "Compression ratio over"), f"layer {layer}")
            np.testing.assert_allclose(drawn, removed[:, layer])
        np.testing.assert_allclose(bar_heights(panel(figure, "Compression ratio after")), removed[-1])
        memory = panel(figure, "Memory")
        np.testing.assert_allclose(line_values(memory, "held") * 1024, stored(compressed, "compression.bytes"))
        full = 3 * 2 * (PROMPT + GENERATED) * 2 * 16 * 4
        assert line_values(memory, "full cache after the last step")[0] * 1024 == full
        assert memory.get_ylabel() == "KiB"

    def test_evictions(self, compressed: Sample) -> None:
        figure = eviction.eviction_timeline(compressed)
        left = stored(compressed, "compression.evicted_event").reshape(6, -1)
        np.testing.assert_array_equal(np.nan_to_num(image_values(figure.axes[0]), nan=-1), left)
        counts = eviction.evictions_by_stage(compressed)
        stages = stored(compressed, "compression.evicted_stage")
        assert [row.sum() for row in counts] == [(stages == stage).sum() for stage in (1, 2, 3)]
        prefill = f"in its layer's prefill: {counts[0].sum():,}"
        np.testing.assert_array_equal(line_values(figure.axes[1], prefill), counts[0][counts[0] > 0])
        assert "layer (2 kv heads each)" in texts_of(figure)

    def test_few_evictions_are_counted_on_a_linear_axis(self, tmp_path: Path) -> None:
        sample = write_sample(tmp_path, prompt=5, generated=2, layers=1)
        axes = eviction.eviction_timeline(sample).axes[1]
        np.testing.assert_array_equal(line_values(axes, "decoding: 4"), [2, 2])
        assert axes.get_yscale() == "linear"
        assert all(float(tick).is_integer() for tick in axes.get_yticks())

    @pytest.mark.parametrize(
        "view", [compression.preference_scores, compression.compression_ratios, eviction.eviction_timeline]
    )
    def test_uncompressed_sample_has_none(self, full: Sample, view: Callable[[Sample], Figure]) -> None:
        with pytest.raises(NothingToDrawError, match="sample 0 was not compressed; capture with a policy"):
            view(full)


class TestLayersAndHeads:
    def test_similarity(self, compressed: Sample) -> None:
        maps = stored(compressed, "heatmap.mass")[-1].mean(1).reshape(3, -1)
        maps = np.nan_to_num(maps)
        cosine = maps @ maps.T / np.outer(np.linalg.norm(maps, axis=1), np.linalg.norm(maps, axis=1))
        figure = layers.layer_similarity(compressed)
        np.testing.assert_allclose(image_values(figure.axes[0]), cosine, rtol=1e-5)
        assert "cosine similarity" in texts_of(figure)

    def test_sparsity_and_norms_by_layer(self, compressed: Sample) -> None:
        figure = layers.layer_statistics(compressed)
        for target in ("key", "value"):
            by_layer = stored(compressed, f"kv.{target}_sparsity").mean(1)
            drawn = line_values(panel(figure, f"Sparsity of the {target}s"), "10 %")
            np.testing.assert_allclose(drawn, by_layer[:, 2])
            norms = stored(compressed, f"kv.{target}_norm").mean((1, 2))
            np.testing.assert_allclose(bar_heights(panel(figure, f"Norm of the {target}s")), norms)

    def test_sparsity_by_head(self, compressed: Sample) -> None:
        figure = heads.head_sparsity(compressed)
        np.testing.assert_array_equal(
            image_values(panel(figure, "Keys")), stored(compressed, "kv.key_sparsity")[..., 2]
        )
        assert "10 % of the root mean square" in figure.get_suptitle()

    def test_pruning_potential(self, compressed: Sample) -> None:
        energy = np.sort(stored(compressed, "kv.value_energy"))[..., ::-1]
        held = energy.cumsum(-1) / energy.sum(-1, keepdims=True)
        for percent, label in ((0.9, "90 % of the energy kept"), (0.99, "99 % of the energy kept")):
            share = 1 - ((held < percent).sum(-1) + 1) / 16
            drawn = line_values(panel(layers.layer_pruning_potential(compressed), "Values: dim"), label)
            np.testing.assert_allclose(drawn, share.mean(1))
        figure = heads.pruning_heatmap(compressed)
        np.testing.assert_allclose(image_values(panel(figure, "Values")), share)  # of 99 %
        bars = bar_heights(panel(heads.head_pruning_potential(compressed), "Values"))
        np.testing.assert_allclose(bars[-2:], share.mean(0))


class TestDimensions:
    def test_consistency(self, compressed: Sample) -> None:
        figure = embeddings.embedding_consistency(compressed)
        sparsity = stored(compressed, "kv.key_dimension_sparsity").reshape(6, -1)
        drawn = bar_heights(panel(figure, "Keys: consistency"))
        np.testing.assert_allclose(drawn, 1 - 2 * sparsity.std(0), rtol=1e-6)
        (spread, mean) = panel(figure, "Keys: sparsity").patches
        np.testing.assert_allclose(spread.get_data().values, sparsity.max(0))
        np.testing.assert_allclose(spread.get_data().baseline, sparsity.min(0))
        np.testing.assert_allclose(mean.get_data().values, sparsity.mean(0))

    def test_sparse_and_dense(self, compressed: Sample) -> None:
        figure = embeddings.sparse_dense_patterns(compressed)
        for title, name in (("Keys: s", "key_dimension_sparsity"), ("Values: e", "value_energy")):
            np.testing.assert_allclose(image_values(panel(figure, title)), stored(compressed, f"kv.{name}").mean(1))


class TestTokens:
    def test_importance_is_what_decoded_tokens_paid(self, compressed: Sample) -> None:
        figure = tokens.token_position_importance(compressed)
        paid = stored(compressed, "token.influence") / GENERATED
        (profile,) = panel(figure, "By position, mean").patches
        np.testing.assert_allclose(profile.get_data().values, paid.mean(0), rtol=1e-6)
        drawn = mesh_values(panel(figure, "By position and"))
        assert drawn.shape == paid.shape
        np.testing.assert_allclose(drawn[~np.isnan(drawn)], paid[~np.isnan(drawn)], rtol=1e-6)
        best = panel(figure, "Tokens that")
        first = int(paid.mean(0).argmax())
        assert best.get_yticklabels()[0].get_text() == f"{first} “t{first}”"
        assert best.patches[0].get_width() == pytest.approx(paid.mean(0).max())

    def test_without_decoded_tokens_it_is_the_last_stored_mass(self, smallest: Sample) -> None:
        figure = tokens.token_position_importance(smallest)
        assert "queries of step 0" in figure.get_suptitle()

    def test_stages(self, compressed: Sample) -> None:
        figure = tokens.generation_stages_comparison(compressed)
        above, below = figure.axes[:2]
        legend = above.get_legend()
        assert legend is not None
        names = [text.get_text() for text in legend.get_texts()]
        assert names == ["prompt (1 step)", "early (2 steps)", "middle (2 steps)", "late (2 steps)"]
        entropy = stored(compressed, "attention.entropy").mean(2)
        np.testing.assert_allclose(below.lines[0].get_ydata(), entropy[0], rtol=1e-6)
        np.testing.assert_allclose(below.lines[3].get_ydata(), entropy[5:].mean(0), rtol=1e-6)
        first = stored(compressed, "attention.prompt_mass")[1:3].mean()
        assert bar_heights(above).reshape(4, -1)[1, 5] == pytest.approx(first)

    def test_hostile_texts_are_shown_as_text(self, tmp_path: Path) -> None:
        texts = ["$\\frac$", "日本", "<b>", "\u202e\n"]
        sample = write_sample(tmp_path, prompt=3, generated=1, layers=1, compressed=False, tokens=texts)
        labels = {tokens.token_label(sample, position) for position in range(4)}
        assert labels == {"0 “$\\frac$”", "1 “□□”", "2 “<b>”", "3 “□↵”"}

    def test_of_many_tokens_the_peaks_are_shown(self, tmp_path: Path) -> None:
        sample = write_sample(tmp_path, prompt=900, generated=1, layers=1, compressed=False)
        figure = tokens.token_position_importance(sample)
        (profile,) = panel(figure, "By position, mean over layers (largest of up to 3 tokens each)").patches
        values, edges, _ = profile.get_data()
        paid = stored(sample, "token.influence")[0]
        wanted = [paid[first:last].max() for first, last in pairwise(edges)]
        np.testing.assert_allclose(values, wanted)
        assert edges[-1] == 901

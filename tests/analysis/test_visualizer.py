"""AttentionVisualizer: which files appear, that they are pictures, what is left out, and plots of users."""

import json
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from kvcompress.analysis.plots.jobs import Request, all_names
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.plots.registry import UserPlotWarning, register_plot, registered_plots, unregister_plot
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.visualizer import AttentionVisualizer
from tests.analysis.plots.test_result_views import ALL as RESULTS
from tests.analysis.samples import write_sample

OF_ALL_SAMPLES = (
    "attention_analysis_comprehensive.png",
    "layer_head_analysis.png",
    "attention_heatmap_step0.png",
    "attention_heatmap_step3.png",
    "layers/layer_statistics.png",
    "layers/layer_pruning_potential.png",
    "heads/head_sparsity.png",
    "heads/head_pruning_potential.png",
    "heads/pruning_heatmap_by_layer_head.png",
    "tokens/token_position_importance.png",
    "tokens/generation_stages_comparison.png",
    "embeddings/embedding_consistency.png",
    "embeddings/sparse_dense_embedding_patterns.png",
    "reports/plots/attention_entropy_evolution_sample_0.png",
    "reports/plots/layer_similarity_sample_0.png",
    "plots/layer_comparison_sample_0.png",
    "plots/attention_heatmap_layer_1_sample_0.png",
    "plots/entropy_variance_layer_0_sample_0.png",
    "plots/head_comparison_layer_1_sample_0.png",
    "plots/interactive_attention_layer_0_sample_0.html",
)
OF_COMPRESSED = (
    "reports/plots/compression_ratios_sample_0.png",
    "plots/preference_scores_sample_0.png",
    "plots/eviction_timeline_sample_0.png",
)
OF_RESULTS = (
    "tucker/tucker_components.png",
    "tucker/layer_sensitivity.png",
    "similarity/token_similarity_layer_2.png",
    "similarity/head_similarity_layer_0.png",
    "similarity/similarity_between_layers.png",
    "similarity/redundancy.png",
    "pruning/pruning_divergence.png",
    "pruning/pruning_agreement.png",
    "pruning/pruning_importance.png",
)


def size_of_png(path: Path) -> tuple[int, int]:
    """Width and height in pixels."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def capture(folder: Path, *, compressed: bool = True, index: int = 0) -> Path:
    write_sample(folder, index, layers=2, prompt=24, generated=3, compressed=compressed)
    return folder


@pytest.fixture
def no_plots_of_users() -> Iterator[None]:
    """Take away what a test registers."""
    yield
    for name in list(registered_plots()):
        unregister_plot(name)


class TestComprehensiveReport:
    @pytest.mark.slow
    @pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "full"])
    def test_every_named_file_appears(self, tmp_path: Path, compressed: bool) -> None:
        for name, content in RESULTS.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        visualizer = AttentionVisualizer(capture(tmp_path, compressed=compressed))
        written = visualizer.generate_comprehensive_report(0)
        expected = {*OF_ALL_SAMPLES, *OF_RESULTS, *(OF_COMPRESSED if compressed else [])}
        found = {path.relative_to(tmp_path).as_posix() for path in written}
        assert expected <= found
        assert (set(OF_COMPRESSED) & found == set()) is not compressed
        left_out = set() if compressed else {"preference_scores", "compression_ratios", "eviction_timeline"}
        assert set(written.left_out) == left_out
        assert all("was not compressed" in reason for reason in written.left_out.values())
        for path in written:
            if path.suffix == ".png":
                width, height = size_of_png(path)
                assert width == 1260
                assert 300 <= height <= 1600
        assert {path for path in tmp_path.rglob("*") if path.suffix in (".png", ".html")} == set(written)

    def test_smallest_sample(self, tmp_path: Path) -> None:
        write_sample(tmp_path, layers=1, query_heads=1, kv_heads=1, head_dim=1, prompt=1, generated=0, compressed=False)
        written = AttentionVisualizer(tmp_path).draw(Request(names=all_names()))
        assert {"compression_ratios", "tucker_components"} <= set(written.left_out)
        assert len(written) == 25

    def test_nothing_is_overwritten_unless_forced(self, tmp_path: Path) -> None:
        visualizer = AttentionVisualizer(capture(tmp_path))
        request = Request(names=["layer_statistics", "head_sparsity"])
        first, _ = visualizer.draw(request)
        first.write_bytes(b"mine")
        other = tmp_path / "heads" / "head_sparsity.png"
        other.unlink()
        with pytest.raises(FileExistsError, match=r"layer_statistics\.png must not be there.*force"):
            visualizer.draw(request)
        assert first.read_bytes() == b"mine"
        assert not other.exists()
        visualizer.draw(request, force=True)
        assert size_of_png(first)[0] == 1260

    def test_pictures_go_elsewhere(self, tmp_path: Path) -> None:
        folder = capture(tmp_path / "capture")
        before = sorted(os.listdir(folder))
        (path,) = AttentionVisualizer(folder, tmp_path / "out").draw(Request(names=["layer_head_analysis"]))
        assert path == tmp_path / "out" / "layer_head_analysis.png"
        assert sorted(os.listdir(folder)) == before

    def test_other_samples_have_folders_for_names_without_a_number(self, tmp_path: Path) -> None:
        capture(capture(tmp_path), index=3)
        names = ["layer_statistics", "layer_similarity"]
        written = AttentionVisualizer(tmp_path).draw(Request(names=names), 3)
        assert {path.relative_to(tmp_path).as_posix() for path in written} == {
            "sample_3/layers/layer_statistics.png",
            "reports/plots/layer_similarity_sample_3.png",
        }

    def test_many_layers_and_steps_are_thinned_and_that_is_said(self, tmp_path: Path) -> None:
        write_sample(tmp_path, layers=12, query_heads=2, kv_heads=1, prompt=8, generated=9, compressed=False)
        visualizer = AttentionVisualizer(tmp_path)
        planned = {path.name for path in visualizer.planned_files(Request())}
        assert len([name for name in planned if name.startswith("attention_heatmap_layer_")]) == 8
        assert {"attention_heatmap_layer_0_sample_0.png", "attention_heatmap_layer_11_sample_0.png"} <= planned
        assert len([name for name in planned if name.startswith("attention_heatmap_step")]) == 5
        (path,) = visualizer.draw(Request(names=["attention_heatmap"], layer=5))
        assert path.name == "attention_heatmap_layer_5_sample_0.png"

    def test_no_file_is_left_where_saving_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        visualizer = AttentionVisualizer(capture(tmp_path))

        def fail(*_: object, **__: object) -> None:
            raise OSError("the disk is full")

        monkeypatch.setattr(Figure, "savefig", fail)
        with pytest.raises(OSError, match="disk is full"):
            visualizer.draw(Request(names=["layer_statistics"]))
        assert os.listdir(tmp_path / "layers") == []


class TestMethods:
    def test_plots_of_the_loaded_sample(self, tmp_path: Path) -> None:
        capture(capture(tmp_path), index=1)
        visualizer = AttentionVisualizer(tmp_path)
        assert visualizer.sample.index == 0
        assert visualizer.load_attention_data(1).index == 1
        assert "layer 1" in visualizer.plot_attention_heatmap(1, 0, 2).get_suptitle()
        assert (
            visualizer.plot_3d_attention(0, 1).layout.title.text
            == "Layer 0, step 1 (decode, 1 query), mean over 4 heads"
        )
        page = visualizer.create_interactive_attention_plot(1, 2)
        assert page.layout.title.text == "Attention in made up, sample 1"

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            (Request(layer=2), r"layer must be in 0\.\.1; got 2"),
            (Request(step=4), r"step must be in 0\.\.3; got 4"),
            (Request(head=-1), r"head must be in 0\.\.3; got -1"),
            (Request(names=["nonsense"]), "what must be of attention_entropy_evolution,.*; got 'nonsense'"),
        ],
    )
    def test_what_there_is_not(self, tmp_path: Path, request_: Request, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            AttentionVisualizer(capture(tmp_path)).draw(request_)

    def test_folder_without_samples(self, tmp_path: Path) -> None:
        with pytest.raises(SummaryError, match="holds no complete sample"):
            AttentionVisualizer(tmp_path).generate_comprehensive_report()

    def test_sample_that_there_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(SummaryError, match="has no sample 7; it has 0"):
            AttentionVisualizer(capture(tmp_path)).load_attention_data(7)


@pytest.mark.usefixtures("no_plots_of_users")
class TestPlotsOfUsers:
    def test_it_is_drawn_with_the_others(self, tmp_path: Path) -> None:
        def tokens(sample: Sample) -> Figure:
            figure = Figure(figsize=(3, 2))
            figure.subplots().plot(sample.tensor("event.tokens"))
            return figure

        register_plot("my_tokens", tokens)
        written = AttentionVisualizer(capture(tmp_path)).draw(Request(names=["my_tokens"]))
        assert [path.relative_to(tmp_path).as_posix() for path in written] == ["plots/my_tokens_sample_0.png"]
        assert size_of_png(written[0]) == (420, 280)
        planned = AttentionVisualizer(tmp_path).planned_files(Request())
        assert written[0] in planned

    @pytest.mark.parametrize(
        ("outcome", "message"),
        [(KeyError("x"), "KeyError: 'x'"), ("no figure", "TypeError: it must return a matplotlib Figure; got str")],
    )
    def test_one_that_fails_leaves_the_others(self, tmp_path: Path, outcome: object, message: str) -> None:
        def broken(sample: Sample) -> Figure:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome  # type: ignore[return-value]

        register_plot("broken", broken)
        visualizer = AttentionVisualizer(capture(tmp_path))
        with pytest.warns(UserPlotWarning, match="plot 'broken' failed"):
            written = visualizer.draw(Request(names=["broken", "layer_statistics"]))
        assert message in written.left_out["broken"]
        assert [path.name for path in written] == ["layer_statistics.png"]

    def test_one_that_has_nothing_to_draw_is_no_failure(self, tmp_path: Path) -> None:
        def picky(sample: Sample) -> Figure:
            raise NothingToDrawError("it needs more")

        register_plot("picky", picky)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            written = AttentionVisualizer(capture(tmp_path)).draw(Request(names=["picky"]))
        assert written.left_out == {"picky": "it needs more"}

    @pytest.mark.parametrize("name", ["", "../up", "a b", "layer_statistics", "tucker_components", "attention_surface"])
    def test_names_that_cannot_be(self, name: str) -> None:
        with pytest.raises(ValueError, match="name must"):
            register_plot(name, lambda sample: Figure())

    def test_replacing_is_asked_for(self) -> None:
        register_plot("one", lambda sample: Figure())
        with pytest.raises(ValueError, match=r"registered.*replace=True"):
            register_plot("one", lambda sample: Figure())
        register_plot("one", lambda sample: Figure(), replace=True)
        unregister_plot("one")
        with pytest.raises(ValueError, match="must be that of a registered plot"):
            unregister_plot("one")
        with pytest.raises(TypeError, match="got int"):
            register_plot("two", 3)  # type: ignore[arg-type]

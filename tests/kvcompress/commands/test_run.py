"""`kvcompress run`: every stage, every file, one focus, what is there already, and interruptions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

from kvcompress.analysis.metrics.capture_analysis import analysis_report
from kvcompress.analysis.metrics.registry import register_metric, unregister_metric
from kvcompress.analysis.plots.catalogue import VIEWS
from kvcompress.analysis.plots.interactive_views import INTERACTIVE_VIEWS
from kvcompress.analysis.plots.registry import register_plot, unregister_plot
from kvcompress.analysis.plots.result_views import RESULT_VIEWS
from kvcompress.analysis.summary.reader import read_sample
from kvcompress.analysis.visualizer import AttentionVisualizer
from kvcompress.cli import app
from kvcompress.commands import run_model
from kvcompress.commands.run_focus import FOCUSES, sections_of
from tests.analysis.samples import write_sample
from tests.kvcompress.commands.test_bad_input import refuse

# The names that earlier tools gave their files.
NAMED = (
    "attention_data_sample_0.safetensors",
    "attention_summary_sample_0.json",
    "reports/analysis_report_sample_0.json",
    *(
        f"reports/plots/{name}_sample_0.png"
        for name in ("attention_entropy_evolution", "compression_ratios", "layer_similarity")
    ),
    *(
        f"plots/{name}_sample_0.png"
        for name in ("layer_comparison", "attention_heatmap_layer_0", "entropy_variance_layer_0", "preference_scores")
    ),
    "plots/interactive_attention_layer_0_sample_0.html",
    "attention_analysis_comprehensive.png",
    "attention_heatmap_step0.png",
    "layer_head_analysis.png",
    "compression_recommendations.txt",
    "layers/layer_statistics.png",
    "layers/layer_pruning_potential.png",
    "heads/head_sparsity.png",
    "heads/head_pruning_potential.png",
    "heads/pruning_heatmap_by_layer_head.png",
    "tokens/token_position_importance.png",
    "tokens/generation_stages_comparison.png",
    "embeddings/embedding_consistency.png",
    "embeddings/sparse_dense_embedding_patterns.png",
    "tucker/tucker_components.png",
    "tucker/layer_sensitivity.png",
    "report.html",
)
STAGES = ("capture", "metrics", "tucker", "similarity", "recommend", "plots", "report")
POLICY = ("--compress", "--cache_size", 40, "--window_size", 8)
TEXT = "<script>alert(1)</script> the old man walks near the house . é 漢字 🐙 " * 3


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def run(*words: object) -> Result:
    result = invoke("run", *words)
    assert result.exit_code == 0, result.output
    return result


def run_json(*words: object) -> dict[str, Any]:
    lines = run(*words, "--json").stdout.splitlines()
    assert len(lines) == 1
    told: dict[str, Any] = json.loads(lines[0])
    return told


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run of every stage, and what it told."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    options = ("--max_new_tokens", 12, "--device", "cpu", "--recommend")
    return folder, run("--model", tiny, "--prompt", TEXT, "--output_dir", folder, *POLICY, *options)


@pytest.fixture
def captured(tiny: Path, tmp_path: Path) -> Path:
    """A folder with a capture and nothing else."""
    folder = tmp_path / "captured"
    run("--model", tiny, "--prompt", TEXT, "--output-dir", folder, "--max-new-tokens", 6, "--skip-analysis")
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("a whole run")
class TestEverything:
    def test_all_files_have_the_names_of_the_earlier_tools(self, whole: tuple[Path, Result]) -> None:
        folder, _ = whole
        assert set(NAMED) - files(folder) == set()
        assert all((folder / name).stat().st_size > 100 for name in NAMED)

    def test_stages_are_told_as_they_go(self, whole: tuple[Path, Result]) -> None:
        _, result = whole
        lines = [line for line in result.stdout.splitlines() if line.endswith(" s)")]
        assert [line.split(":")[0] for line in lines] == list(STAGES)
        assert result.stdout.splitlines()[-1].endswith("report.html")

    def test_metrics_are_those_of_analyze(self, whole: tuple[Path, Result]) -> None:
        folder, _ = whole
        written = json.loads((folder / "reports" / "analysis_report_sample_0.json").read_text(encoding="utf-8"))
        assert written == json.loads(json.dumps(analysis_report(read_sample(folder))))

    def test_recommendations_were_measured_with_the_model_of_the_capture(self, whole: tuple[Path, Result]) -> None:
        told = json.loads((whole[0] / "compression_recommendations.json").read_text(encoding="utf-8"))
        assert told["measured"] is True
        assert all(step["kl"] is not None for strategy in told["strategies"] for step in strategy["ladder"])

    def test_the_cache_of_the_captured_text_was_decomposed(self, whole: tuple[Path, Result]) -> None:
        sample = read_sample(whole[0])
        for name in ("tucker", "similarity"):
            told = json.loads((whole[0] / f"{name}.json").read_text(encoding="utf-8"))
            assert 8 <= told["tokens"] <= sample.token_count
            assert {layer["layer"] for layer in told["layers"]} == {0, 1}
        assert len(json.loads((whole[0] / "tucker.json").read_text(encoding="utf-8"))["sensitivity"]) == 2

    def test_text_of_the_prompt_is_data(self, whole: tuple[Path, Result]) -> None:
        for page in ("report.html", "plots/interactive_attention_layer_0_sample_0.html"):
            assert "<script>alert" not in (whole[0] / page).read_text(encoding="utf-8")
        tokens = read_sample(whole[0]).summary.tokens
        assert tokens is not None
        assert any("script" in token or "<" in token for token in tokens) or "<unk>" in tokens

    def test_again_only_with_force(self, whole: tuple[Path, Result], tiny: Path) -> None:
        folder, _ = whole
        before = files(folder)
        refuse("run", "--model", tiny, "--output-dir", folder, words=("would be overwritten", "--force"))
        refuse("run", "--skip-collection", "--output-dir", folder, words=("would be overwritten", "--force"))
        assert files(folder) == before


class TestStages:
    def test_the_capture_alone(self, captured: Path) -> None:
        assert files(captured) == {"attention_data_sample_0.safetensors", "attention_summary_sample_0.json"}

    @pytest.mark.slow
    def test_the_analysis_alone_needs_no_model(self, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_model, "load_model", None)
        told = run_json("--skip_collection", "--output_dir", captured)
        assert [stage["stage"] for stage in told["stages"]] == ["metrics", "plots", "report"]
        assert told["captured"] is None
        for study in ("tucker", "similarity"):
            assert "give --model" in told["left_out"][study]
        assert {str(captured / name) for name in files(captured)} >= set(told["written"])
        assert (captured / "report.html").is_file()

    def test_a_model_that_is_given_is_measured_with(self, captured: Path, tiny: Path) -> None:
        told = run_json(
            *("--skip-collection", "--output-dir", captured, "--model", tiny, "--analysis-focus", "embeddings")
        )
        assert str(captured / "tucker.json") in told["written"]
        assert (captured / "tucker" / "tucker_components.png").is_file()

    def test_another_model_is_refused_before_anything_is_written(self, tmp_path: Path, tiny: Path) -> None:
        write_sample(tmp_path / "capture", prompt=24, generated=4)
        before = files(tmp_path)
        words = ("--model must be the model of the capture", "query heads")
        refuse("run", "--skip-collection", "--output-dir", tmp_path / "capture", "--model", tiny, words=words)
        assert files(tmp_path) == before

    def test_results_that_are_there_are_drawn_as_they_are(self, captured: Path, tiny: Path) -> None:
        run("--skip-collection", "--output-dir", captured, "--model", tiny, "--analysis-focus", "embeddings")
        first = (captured / "tucker.json").read_bytes()
        mark = (captured / "tucker.json").stat().st_mtime_ns
        for name in ("report.html", "reports/analysis_report_sample_0.json", "tucker/tucker_components.png"):
            (captured / name).unlink()
        for path in (captured / "embeddings").iterdir():
            path.unlink()
        told = run_json("--skip-collection", "--output-dir", captured, "--analysis-focus", "embeddings")
        assert (captured / "tucker.json").stat().st_mtime_ns == mark
        assert (captured / "tucker.json").read_bytes() == first
        assert str(captured / "tucker" / "tucker_components.png") in told["written"]
        assert told["left_out"] == {}

    def test_without_low_rank(self, captured: Path, tiny: Path) -> None:
        focus = ("--analysis-focus", "embeddings")
        told = run_json("--skip-collection", "--output-dir", captured, "--model", tiny, "--no-low-rank", *focus)
        assert [stage["stage"] for stage in told["stages"]] == ["metrics", "plots", "report"]
        assert not (captured / "tucker.json").exists()

    @pytest.mark.slow
    def test_every_sample_is_analysed(self, tmp_path: Path) -> None:
        for index in (0, 2):
            write_sample(tmp_path, index, prompt=24, generated=3, seed=index)
        told = run_json("--skip-collection", "--output-dir", tmp_path, "--analysis-focus", "heads", "--no-low-rank")
        assert told["samples"] == [0, 2]
        for name in ("heads/head_sparsity.png", "sample_2/heads/head_sparsity.png"):
            assert str(tmp_path / name) in told["written"]
        assert (tmp_path / "reports" / "analysis_report_sample_2.json").is_file()

    @pytest.mark.slow
    def test_users_metrics_and_plots_are_among_them(self, tmp_path: Path) -> None:
        write_sample(tmp_path, layers=1, prompt=24, generated=3)
        register_metric("own_metric", lambda sample: sample.token_count)
        register_plot("own_plot", lambda sample: Figure())
        try:
            told = run_json("--skip-collection", "--output-dir", tmp_path, "--no-low-rank")
        finally:
            unregister_metric("own_metric")
            unregister_plot("own_plot")
        report = json.loads((tmp_path / "reports" / "analysis_report_sample_0.json").read_text(encoding="utf-8"))
        assert report["user_metrics"] == {"own_metric": 27}
        assert str(tmp_path / "plots" / "own_plot_sample_0.png") in told["written"]


class TestFocus:
    def test_every_picture_belongs_to_one(self) -> None:
        drawn = [name for name, view in VIEWS.items() if view.always]
        drawn += [name for name, view in INTERACTIVE_VIEWS.items() if view.always]
        drawn += [name for name, view in RESULT_VIEWS.items() if view.results != "pruning"]
        assert sorted(name for focus in FOCUSES.values() for name in focus.pictures) == sorted(drawn)

    def test_studies_are_those_that_its_pictures_need(self) -> None:
        for focus in FOCUSES.values():
            needed = {RESULT_VIEWS[name].results for name in focus.pictures if name in RESULT_VIEWS}
            assert set(focus.studies) == needed

    @pytest.mark.parametrize("compressed", [True, False])
    def test_every_section_of_the_report_belongs_to_one(self, tmp_path: Path, compressed: bool) -> None:
        report = analysis_report(write_sample(tmp_path, prompt=24, generated=3, compressed=compressed))
        parts = {name: sections_of(report, name) for name in FOCUSES}
        together: dict[str, Any] = {}
        for name, part in parts.items():
            assert part.pop("focus") == name
            for section, content in part.items():
                if isinstance(content, dict) and isinstance(together.get(section), dict):
                    together[section] |= content
                else:
                    together[section] = content if not isinstance(content, dict) else dict(content)
        assert together == report

    @pytest.mark.parametrize("focus", FOCUSES)
    def test_only_its_metrics_and_pictures_are_made(self, tmp_path: Path, focus: str) -> None:
        write_sample(tmp_path, prompt=24, generated=3)
        told = run_json("--skip_collection", "--output_dir", tmp_path, "--analysis_focus", focus, "--no-low-rank")
        report = json.loads((tmp_path / "reports" / "analysis_report_sample_0.json").read_text(encoding="utf-8"))
        assert report["focus"] == focus
        folders = {path.parent.name for path in map(Path, told["written"])} & set(FOCUSES)
        assert folders == {focus}

    def test_unknown(self, tmp_path: Path) -> None:
        words = ("--analysis-focus", "layers, heads, tokens, embeddings", "'eyes'")
        refuse("run", "--analysis-focus", "eyes", "--output-dir", tmp_path / "out", words=words)
        assert not (tmp_path / "out").exists()


class TestRefusals:
    def test_nothing_to_do(self) -> None:
        refuse("run", "--skip-collection", "--skip-analysis", words=("nothing to do",))
        refuse("run", "--skip-analysis", "--recommend", words=("--recommend", "--skip-analysis"))

    def test_no_capture(self, tmp_path: Path) -> None:
        refuse("run", "--skip-collection", "--output-dir", tmp_path, words=("no complete sample", "kvcompress capture"))

    @pytest.mark.parametrize("name", ["report.html", "tucker.json", "sample_3/layers/layer_statistics.png"])
    def test_files_of_an_earlier_run_before_a_model_is_loaded(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
        refuse("run", "--model", "./nowhere", "--output-dir", tmp_path, words=(name, "--force"))
        assert files(tmp_path) == {name}

    def test_a_file_in_the_way(self, captured: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        refuse("run", "--output-dir", tmp_path / "file", words=("--output-dir", "is a file"))
        (captured / "heads").write_text("mine")
        result = invoke("run", "--skip-collection", "--output-dir", captured, "--analysis-focus", "heads")
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith("kvcompress: error: ")
        assert "heads" in result.stderr.splitlines()[-1]
        assert (captured / "heads").read_text() == "mine"

    def test_attention_that_is_not_a_number(self, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tensor = type(read_sample(captured)).tensor

        def with_nan(sample: Any, name: str) -> torch.Tensor:
            found: torch.Tensor = tensor(sample, name)
            return torch.full_like(found, float("nan")) if name == "attention.entropy" else found

        monkeypatch.setattr(type(read_sample(captured)), "tensor", with_nan)
        before = files(captured)
        refuse("run", "--skip-collection", "--output-dir", captured, words=("attention.entropy", "finite"))
        assert files(captured) == before


class TestInterruption:
    def test_finished_stages_stay(self, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stopped(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(AttentionVisualizer, "draw", stopped)
        result = invoke("run", "--skip-collection", "--output-dir", captured)
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == "stopped during: plots; finished, with all files: metrics"
        assert (captured / "reports" / "analysis_report_sample_0.json").is_file()
        monkeypatch.undo()
        run("--skip-collection", "--output-dir", captured, "--force", "--analysis-focus", "heads")

    def test_of_the_capture(self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stopped(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("kvcompress.commands.capture_work.run_model", stopped)
        result = invoke("run", "--model", tiny, "--prompt", TEXT, "--output-dir", tmp_path / "out")
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == f"stopped: no samples are complete in {tmp_path / 'out'}"
        assert not (tmp_path / "out").exists()

"""AttentionAnalyzer: reports of a folder, and analysis of maps."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcompress.analysis.analyzer import AttentionAnalyzer
from kvcompress.analysis.metrics import attention, influence
from kvcompress.analysis.metrics.attention_layers import layer_similarity
from kvcompress.analysis.metrics.inputs import causal_mask
from kvcompress.analysis.metrics.registry import UserMetricWarning, register_metric, unregister_metric
from kvcompress.analysis.summary.errors import SummaryError
from tests.analysis.metrics.maps import random_attention
from tests.analysis.samples import write_sample

SECTIONS = (
    "attention cache compression events generation_stages influence model most_attended_tokens policy positions sample "
    "schema step_change tokens user_metric_errors user_metrics"
)


@pytest.fixture
def maps() -> dict[str, list[torch.Tensor]]:
    """Two layers, three steps, all tokens seen, as of a diffusion model."""
    return {
        f"blocks.{layer}.attention": [random_attention(2, 4, 12, 12, seed=10 * layer + step) for step in range(3)]
        for layer in range(2)
    }


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, float):
        yield value


class TestFolder:
    @pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "full"])
    def test_report_is_returned_and_written(self, tmp_path: Path, compressed: bool) -> None:
        sample = write_sample(tmp_path, compressed=compressed, tokens=[f"<script>ü{i}" for i in range(56)])
        report = AttentionAnalyzer(tmp_path).generate_analysis_report()
        text = (tmp_path / "reports" / "analysis_report_sample_0.json").read_text(encoding="utf-8")
        assert json.loads(text, parse_constant=pytest.fail) == report
        assert sorted(report) == SECTIONS.split()
        assert (report["compression"] is None) is not compressed
        assert report["tokens"] == {"prompt": 48, "generated": 8, "total": 56}
        assert report["events"] == {"prefill": 1, "decode": 8, "step": 0}
        assert report["most_attended_tokens"]["tokens"][0]["token"].startswith("<script>ü")
        entropy = float(sample.tensor("attention.entropy")[1:].double().mean())
        assert report["attention"]["generated"]["entropy"] == pytest.approx(entropy)
        assert len(report["attention"]["layers"]) == 3
        assert all(map(math.isfinite, numbers(report)))

    def test_output_dir_and_sample_index(self, tmp_path: Path) -> None:
        for index in (0, 3):
            write_sample(tmp_path / "capture", index, seed=index)
        analyzer = AttentionAnalyzer(str(tmp_path / "capture"), output_dir=tmp_path / "out")
        assert analyzer.samples == [0, 3]
        assert analyzer.generate_analysis_report(3)["sample"] == 3
        assert [path.name for path in (tmp_path / "out" / "reports").iterdir()] == ["analysis_report_sample_3.json"]
        assert not (tmp_path / "capture" / "reports").exists()

    def test_sample_that_is_not_there(self, tmp_path: Path) -> None:
        write_sample(tmp_path)
        for index in (1, -1, 10**9):
            with pytest.raises(SummaryError, match=rf"has no sample {index}; it has 0"):
                AttentionAnalyzer(tmp_path).generate_analysis_report(index)

    def test_folder_without_samples(self, tmp_path: Path) -> None:
        with pytest.raises(SummaryError, match="holds no complete sample"):
            AttentionAnalyzer(tmp_path)
        with pytest.raises(SummaryError, match="must be a folder"):
            AttentionAnalyzer(tmp_path / "none")

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_attention_that_is_not_a_number(self, tmp_path: Path, value: float) -> None:
        from safetensors.torch import load_file, save_file

        write_sample(tmp_path)
        path = tmp_path / "attention_data_sample_0.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        tensors["attention.variance"][4, 2, 1] = value
        save_file(tensors, path)
        summary = tmp_path / "attention_summary_sample_0.json"
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"data_bytes": path.stat().st_size}))
        with pytest.raises(SummaryError, match=r"attention.variance .* first at event 4, layer 2, head 1"):
            AttentionAnalyzer(tmp_path).generate_analysis_report()
        assert not (tmp_path / "reports").exists()

    def test_user_metrics_are_in_the_report(self, tmp_path: Path) -> None:
        write_sample(tmp_path)
        register_metric("tokens", lambda sample: sample.token_count)
        register_metric("broken", lambda sample: sample.tensor("no such tensor"))
        try:
            with pytest.warns(UserMetricWarning, match="metric 'broken' failed"):
                report = AttentionAnalyzer(tmp_path).generate_analysis_report()
        finally:
            unregister_metric("tokens")
            unregister_metric("broken")
        assert report["user_metrics"] == {"tokens": 56}
        assert "no such tensor" in report["user_metric_errors"]["broken"]

    def test_methods_of_maps_are_refused(self, tmp_path: Path) -> None:
        write_sample(tmp_path)
        analyzer = AttentionAnalyzer(tmp_path)
        with pytest.raises(ValueError, match="get_attention_statistics needs attention maps"):
            analyzer.get_attention_statistics()
        with pytest.raises(ValueError, match="analyze_token_influence needs attention maps"):
            analyzer.analyze_token_influence(3)


class TestMaps:
    def test_statistics(self, maps: dict[str, list[torch.Tensor]]) -> None:
        found = AttentionAnalyzer(maps).get_attention_statistics()
        assert found["total_layers"] == 2
        assert found["total_attention_maps"] == 6
        assert found["total_bytes"] == 6 * 2 * 4 * 144 * 8
        assert found["steps"] == [0, 1, 2]
        for name, captures in maps.items():
            entropies = torch.stack([attention.entropy(p) for p in captures])
            layer = found["layers"][name]
            assert layer["shapes"] == [[2, 4, 12, 12]]
            assert layer["entropy"]["mean"] == pytest.approx(float(entropies.mean()))
            assert layer["entropy"]["std"] == pytest.approx(float(entropies.std(correction=0)))
            assert layer["entropy"]["min"] == pytest.approx(float(entropies.min()))
            variances = torch.stack([attention.variance(p) for p in captures])
            assert layer["variance"]["max"] == pytest.approx(float(variances.max()))

    def test_patterns(self, maps: dict[str, list[torch.Tensor]]) -> None:
        found = AttentionAnalyzer(maps).analyze_attention_patterns()
        last = torch.stack([captures[-1].mean((0, 1)) for captures in maps.values()])
        matrix = torch.tensor(found["layer_similarity"]["matrix"], dtype=torch.float64)
        torch.testing.assert_close(matrix, layer_similarity(last))
        for name, captures in maps.items():
            joined = torch.stack(captures)
            assert found["attention_focus"][name] == pytest.approx(1 / float(attention.entropy(joined).mean()))
            assert found["attention_density"][name]["mean"] == pytest.approx(float(attention.density(joined).mean()))
            own = float(joined.diagonal(dim1=-2, dim2=-1).mean())
            assert found["shares"][name]["diagonal"] == pytest.approx(own)
            moved = [
                (a - b).abs().sum(-1).mean() / 2 for a, b in ((captures[1], captures[0]), (captures[2], captures[1]))
            ]
            assert found["evolution"][name]["moved_to_next"] == pytest.approx([float(value) for value in moved])

    def test_causal_maps_count_the_keys_that_are_seen(self) -> None:
        values = random_attention(1, 2, 9, 9, causal=True)
        found = AttentionAnalyzer({"a": [values]}).get_attention_statistics()["layers"]["a"]
        wanted = attention.entropy_normalised(values, causal_mask(9, 9)).mean()
        assert found["entropy_normalised"]["mean"] == pytest.approx(float(wanted))

    def test_token_influence(self, maps: dict[str, list[torch.Tensor]]) -> None:
        found = AttentionAnalyzer(maps).analyze_token_influence(5)
        overall = torch.stack([torch.stack(captures).mean((0, 1, 2)) for captures in maps.values()]).mean(0)
        assert len(found["prompt_tokens"]) == 5
        assert len(found["generated_tokens"]) == 7
        on_generated = influence.influence_of_prompt(overall, 5)
        got = [row["influence_on_generated"] for row in found["prompt_tokens"]]
        assert got == pytest.approx(on_generated.tolist())
        assert found["generated_tokens"][0]["paid_to_prompt"] == pytest.approx(float(overall[5, :5].sum()))
        cross = influence.cross_mass(overall, 5)._asdict()
        assert found["cross_mass"] == pytest.approx({name: float(value) for name, value in cross.items()})
        assert [row["step"] for row in found["cross_mass_by_step"]] == [0, 1, 2]

    def test_rows_of_an_autoregressive_generation_are_joined(self) -> None:
        whole = random_attention(1, 2, 9, 9, causal=True)
        rows = [whole[..., :6, :6], *(whole[..., place : place + 1, : place + 1] for place in range(6, 9))]
        found = AttentionAnalyzer({"a": rows}).analyze_token_influence(6)
        assert found == AttentionAnalyzer({"a": {3: whole}}).analyze_token_influence(6)

    @pytest.mark.parametrize("prompt_length", [0, -2, 12, 50])
    def test_prompt_length_out_of_range(self, maps: dict[str, list[torch.Tensor]], prompt_length: int) -> None:
        with pytest.raises(ValueError, match=rf"prompt_length must be in \[1, 12\).*got {prompt_length}"):
            AttentionAnalyzer(maps).analyze_token_influence(prompt_length)

    def test_layer_summary(self, maps: dict[str, list[torch.Tensor]]) -> None:
        analyzer = AttentionAnalyzer(maps)
        found = analyzer.get_layer_attention_summary("blocks.1.attention")
        assert found["total_captures"] == 3
        heads = attention.entropy(torch.stack(maps["blocks.1.attention"])).mean((0, 1, 3))
        assert found["heads"]["entropy"] == pytest.approx(heads.tolist())
        with pytest.raises(ValueError, match=r"one of blocks.0.attention, blocks.1.attention; got 'blocks.2'"):
            analyzer.get_layer_attention_summary("blocks.2")

    def test_export(self, maps: dict[str, list[torch.Tensor]], tmp_path: Path) -> None:
        analyzer = AttentionAnalyzer(maps)
        path = analyzer.export_analysis_report(tmp_path / "new" / "report.json", prompt_length=4)
        content = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert content["statistics"] == analyzer.get_attention_statistics()
        assert content["token_influence"] == analyzer.analyze_token_influence(4)
        assert sorted(content["layers"]) == sorted(maps)
        with pytest.raises(ValueError, match="prompt_length"):
            analyzer.export_analysis_report(tmp_path / "other.json", prompt_length=99)
        assert not (tmp_path / "other.json").exists()

    def test_all_forms_of_maps_are_the_same(self, maps: dict[str, list[torch.Tensor]]) -> None:
        wanted = AttentionAnalyzer(maps).analyze_attention_patterns()
        by_step = {name: dict(reversed(list(enumerate(captures)))) for name, captures in maps.items()}
        records = {
            name: [{"step": step, "block": 0, "attention_weights": p} for step, p in enumerate(captures)]
            for name, captures in maps.items()
        }
        assert AttentionAnalyzer(by_step).analyze_attention_patterns() == wanted
        assert AttentionAnalyzer(records).analyze_attention_patterns() == wanted

    def test_attention_on_one_key_has_no_finite_focus(self) -> None:
        found = AttentionAnalyzer({"a": [torch.eye(4)[None, None]]}).analyze_attention_patterns()
        assert found["attention_focus"] == {"a": None}

    @pytest.mark.parametrize(
        ("maps", "words"),
        [
            ({}, "at least one layer"),
            ({"a": []}, r"maps\['a'\] must have at least one map"),
            ({"a": [torch.full((1, 1, 2, 2), math.nan)]}, r"maps\['a'\], step 0, must be finite"),
            ({"a": {7: torch.full((1, 1, 2, 2), 3.0)}}, r"maps\['a'\], step 7, must be probabilities"),
            ({"a": [torch.full((2, 2), 0.5)]}, r"\[batch, heads, queries, keys\]; got \(2, 2\)"),
            ({"a": [{"step": 1}]}, "attention_weights"),
            ({"a": [None]}, "got NoneType"),
        ],
    )
    def test_maps_that_cannot_be_analysed(self, maps: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            AttentionAnalyzer(maps)

    def test_maps_of_different_sequences(self) -> None:
        maps = {"a": [random_attention(1, 1, 4, 4)], "b": [random_attention(1, 1, 5, 5)]}
        analyzer = AttentionAnalyzer(maps)
        assert analyzer.analyze_attention_patterns()["layer_similarity"] is None
        with pytest.raises(ValueError, match=r"got maps of \[4, 5\] tokens"):
            analyzer.analyze_token_influence(2)
        with pytest.raises(ValueError, match="must all be square, or continue each other"):
            AttentionAnalyzer({"a": [random_attention(1, 1, 2, 7)]}).analyze_token_influence(2)

    def test_methods_of_a_folder_are_refused(self, maps: dict[str, list[torch.Tensor]], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="generate_analysis_report needs the folder of a capture"):
            AttentionAnalyzer(maps).generate_analysis_report(0)
        with pytest.raises(ValueError, match="output_dir is for a folder's analysis"):
            AttentionAnalyzer(maps, output_dir=tmp_path)


@pytest.mark.parametrize("source", [None, 3, [torch.zeros(1)]])
def test_source_of_another_kind(source: Any) -> None:
    with pytest.raises(TypeError, match="folder of a capture or a mapping"):
        AttentionAnalyzer(source)

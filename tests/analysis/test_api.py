"""The public names of the analysis work together, as the docs show them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

import kvcompress.analysis.api as api
from kvcompress import CakeCache
from kvcompress.analysis.metrics.registry import unregister_metric
from kvcompress.analysis.plots.registry import unregister_plot
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import greedy, prompt


def test_every_name_is_there_and_described() -> None:
    assert api.__all__ == sorted(api.__all__, key=lambda name: (name.islower(), name))
    for name in api.__all__:
        assert getattr(api, name).__doc__


@pytest.fixture
def users() -> Any:
    """A metric and a plot of the user's."""

    def plot(sample: api.Sample) -> Figure:
        figure = Figure()
        figure.subplots().plot(sample.tensor("attention.recent_mass").mean((1, 2)))
        return figure

    api.register_metric("late_mass", lambda sample: float(sample.tensor("attention.recent_mass").mean()))
    api.register_plot("my_view", plot)
    yield
    unregister_metric("late_mass")
    unregister_plot("my_view")


def test_recording_analysis_and_report_of_the_docs(tmp_path: Path, users: Any) -> None:
    model = shared_model("llama")
    with api.Recorder(model, tmp_path):
        greedy(model, CakeCache(model, cache_size=24, window_size=4), prompt(60), steps=4)
    sample = api.read_sample(tmp_path)
    report = api.AttentionAnalyzer(tmp_path).generate_analysis_report(0)
    assert report["user_metrics"]["late_mass"] == pytest.approx(float(sample.tensor("attention.recent_mass").mean()))
    assert api.AttentionVisualizer(tmp_path).plot_attention_heatmap(0, 0, 1)
    page = api.write_report(tmp_path)
    assert page.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert api.list_samples(tmp_path) == [0]
    assert torch.equal(sample.held(0), api.read_sample(tmp_path).held(0))

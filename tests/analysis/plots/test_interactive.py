"""Interactive views: their controls carry the data of each layer, step and head, and do not undo each other."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvcompress.analysis.plots import interactive
from kvcompress.analysis.plots.attention_map import attention_map
from kvcompress.analysis.plots.interactive import interactive_attention
from kvcompress.analysis.plots.saving import save_html
from kvcompress.analysis.plots.surface import surface
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.plots.conftest import GENERATED
from tests.analysis.plots.test_attention_views import assert_shown

LAYERS, HEADS = 3, 5  # four heads and their mean


def unpacked(packed: dict[str, str]) -> np.ndarray:
    """An array as plotly.js unpacks it."""
    shape = [int(size) for size in packed["shape"].split(", ")]
    return np.frombuffer(base64.b64decode(packed["bdata"]), dtype=f"<{packed['dtype']}").reshape(shape)


def shown(figure: Any) -> list[str]:
    """Names of the traces that can be seen and hovered over."""
    return [trace.name for trace in figure.data if trace.visible and trace.opacity and trace.hoverinfo != "skip"]


def applied(figure: Any, change: dict[str, Any]) -> None:
    """What Plotly.restyle does with an option's arguments."""
    for name, values in change.items():
        for place, trace in enumerate(figure.data):
            trace[name] = values[place % len(values)]


class TestControls:
    def test_first_view_is_what_was_asked_for(self, compressed: Sample) -> None:
        figure = interactive_attention(compressed, 1, 0, 2)
        assert shown(figure) == ["layer 1, head 2"]
        (trace,) = [trace for trace in figure.data if trace.name == "layer 1, head 2"]
        np.testing.assert_allclose(trace.customdata, attention_map(compressed, 1, 0, 2).values, rtol=1e-6)
        assert [menu.active for menu in figure.layout.updatemenus] == [1, 3]
        assert figure.layout.sliders[0].active == 0

    def test_every_layer_and_head_can_be_chosen_in_any_order(self, compressed: Sample) -> None:
        figure = interactive_attention(compressed, 0)
        layers, heads = figure.layout.updatemenus
        assert [button.label for button in layers.buttons] == ["layer 0", "layer 1", "layer 2"]
        assert [button.label for button in heads.buttons] == ["mean over heads", *(f"head {i}" for i in range(4))]
        applied(figure, heads.buttons[3].args[0])
        applied(figure, layers.buttons[2].args[0])
        assert shown(figure) == ["layer 2, head 2"]
        applied(figure, heads.buttons[0].args[0])
        assert shown(figure) == ["layer 2, mean over heads"]

    def test_steps_carry_the_data_of_every_trace(self, compressed: Sample) -> None:
        figure = interactive_attention(compressed, 0)
        steps = figure.layout.sliders[0].steps
        assert len(steps) == GENERATED + 1
        assert steps[2].label == "step 2 (decode, 1 query)"
        for step in (0, 3):
            change = steps[step].args[0]
            assert {name: len(values) for name, values in change.items()} == dict.fromkeys(
                ("z", "customdata", "x", "y"), LAYERS * HEADS
            )
            for place, trace in enumerate(figure.data):
                layer, head = divmod(place, HEADS)
                wanted = attention_map(compressed, layer, step, head - 1 if head else None)
                values, logarithms = unpacked(change["customdata"][place]), unpacked(change["z"][place])
                np.testing.assert_allclose(values, wanted.values, rtol=1e-6)
                assert_shown(10**logarithms, wanted.values, 10**figure.layout.coloraxis.cmax)
                assert list(change["x"][place]) == list(wanted.key_edges)
                assert trace.name.startswith(f"layer {layer}")

    def test_single_query_is_named_on_its_axis(self, compressed: Sample) -> None:
        figure = interactive_attention(compressed, 0, 3)
        assert figure.layout.yaxis.title.text == "query at position 102"
        assert figure.layout.sliders[0].steps[0].args[1]["yaxis.title.text"] == "query position (token)"

    def test_where_all_layers_are_too_much_it_is_one(self, compressed: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(interactive, "MOST_CELLS", 1)
        figure = interactive_attention(compressed, 2)
        assert len(figure.data) == HEADS
        assert shown(figure) == ["layer 2, mean over heads"]

    def test_where_one_layer_is_too_much_it_is_fewer_steps(
        self, compressed: Sample, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(interactive, "MOST_CELLS", 5 * 64 * 64)
        figure = interactive_attention(compressed, 2, 5)
        assert [step.label.split()[1] for step in figure.layout.sliders[0].steps] == ["0", "5"]
        assert figure.layout.sliders[0].active == 1

    def test_many_steps_are_thinned_but_for_the_one_asked_for(
        self, compressed: Sample, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(interactive, "MOST_STEPS", 2)
        slider = interactive_attention(compressed, 0, 4).layout.sliders[0]
        assert [step.label.split()[1] for step in slider.steps] == ["0", "4", str(GENERATED)]
        assert slider.active == 1

    @pytest.mark.parametrize(("place", "message"), [((3, 0), "layer must"), ((0, 9), "step must"), ((0, 0, 4), "head")])
    def test_places_that_there_are_not(self, compressed: Sample, place: tuple[int, ...], message: str) -> None:
        for view in (interactive_attention, surface):
            with pytest.raises(ValueError, match=message):
                view(compressed, *place)


class TestSurface:
    def test_queries_by_keys(self, compressed: Sample) -> None:
        figure = surface(compressed, 1, 0, 0)
        (drawn,) = figure.data
        values = attention_map(compressed, 1, 0, 0).values
        assert_shown(np.where(values > 0, drawn.z, np.nan), np.maximum(values, np.nanmax(values) / 1e5))
        assert np.isnan(drawn.z[0, 1:]).all()  # the future of the first query
        assert figure.layout.scene.zaxis.title.text == "attention probability per key token"

    def test_decoded_token_shows_the_steps_up_to_it(self, compressed: Sample) -> None:
        (drawn,) = surface(compressed, 1, 4).data
        assert list(drawn.y) == [0, 1, 2, 3, 4]
        mass = compressed.tensor("attention.position_mass")[4, 1].double().mean(0).numpy()
        assert np.diff([*drawn.x, 103.5]) @ drawn.z[-1] == pytest.approx(mass.sum(), rel=0.05)

    def test_single_step_and_key_are_a_patch(self, smallest: Sample) -> None:
        """Plotly draws nothing between fewer than two points."""
        (drawn,) = surface(smallest, 0, 0).data
        assert [list(drawn.x), list(drawn.y)] == [[-0.5, 0.5], [-0.5, 0.5]]
        assert np.asarray(drawn.z).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_page_is_whole_offline_and_takes_names_as_text(
    compressed: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = compressed.summary.model.model_copy(update={"name": "<script>alert(1)</script></script><b>"})
    monkeypatch.setattr(compressed, "summary", compressed.summary.model_copy(update={"model": hostile}))
    page = save_html(interactive_attention(compressed, 0), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script src=" not in page
    assert "<script>alert" not in page
    assert page.rstrip().endswith("</html>")
    title = json.loads(page.split('"title":{"text":')[1].split(',"x"')[0])
    assert title.startswith("Attention in &lt;script&gt;")

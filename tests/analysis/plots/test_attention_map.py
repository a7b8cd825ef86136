"""The attention of one event, layer and head: the most exact that is stored, and which."""

import numpy as np
import pytest

from kvcompress.analysis.plots.attention_map import attention_map
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.plots.conftest import GENERATED, PROMPT

EXACT = {"rtol": 1e-5, "atol": 1e-7}


def test_raw_attention_wins(raw: Sample) -> None:
    whole = raw.raw_attention(0, 1).double().numpy()
    one, mean = attention_map(raw, 1, 0, 2), attention_map(raw, 1, 0)
    assert one.source == mean.source == "raw"
    np.testing.assert_array_equal(one.values, whole[2])
    np.testing.assert_allclose(mean.values, whole.mean(0))
    assert list(one.query_edges) == list(one.key_edges) == list(range(13))


def test_raw_attention_of_a_decoded_token(raw: Sample) -> None:
    shown = attention_map(raw, 1, 2, 0)
    assert shown.single
    assert list(shown.query_edges) == [13, 14]
    np.testing.assert_array_equal(shown.values, raw.raw_attention(2, 1)[0].double().numpy())


def test_short_prompt_has_a_bin_per_token(raw: Sample) -> None:
    """Twelve tokens in 64 bins: what is drawn is the attention itself."""
    shown = attention_map(raw, 1, 0)
    binned = attention_map(raw, 0, 0)
    assert binned.source == "bins"
    assert binned.values.shape == shown.values.shape == (12, 12)
    assert list(binned.key_edges) == list(range(13))


@pytest.mark.parametrize("head", [None, 0, 3])
def test_bins_are_means_per_key(compressed: Sample, head: int | None) -> None:
    shown = attention_map(compressed, 1, 0, head)
    assert shown.source == "bins"
    assert shown.values.shape == (64, 64)
    assert shown.query_edges[-1] == shown.key_edges[-1] == PROMPT
    np.testing.assert_allclose(shown.values @ np.diff(shown.key_edges), 1, rtol=1e-5)  # every query's mass
    stored = compressed.tensor("heatmap.mass")[0, 1].double()
    chosen = (stored.mean(0) if head is None else stored[head]).numpy()
    np.testing.assert_allclose(shown.values * np.diff(shown.key_edges), chosen, **EXACT)


def test_decoded_token_by_head_is_the_mass_by_position(compressed: Sample) -> None:
    shown = attention_map(compressed, 2, 3, 1)
    assert shown.source == "position bins"
    assert shown.key_edges[-1] == PROMPT + 3
    stored = compressed.tensor("attention.position_mass")[3, 2, 1].double().numpy()
    np.testing.assert_allclose(shown.values[0] * np.diff(shown.key_edges), stored, **EXACT)


def test_decoded_token_over_heads_has_every_token(compressed: Sample) -> None:
    shown = attention_map(compressed, 2, GENERATED)
    assert shown.source == "tokens"
    assert shown.origin == "every token"
    np.testing.assert_array_equal(shown.values[0], compressed.token_mass(GENERATED)[2].double().numpy())


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"layer": 3, "step": 0}, r"layer must be in 0\.\.2; got 3"),
        ({"layer": -1, "step": 0}, r"layer must be in 0\.\.2; got -1"),
        ({"layer": 0, "step": 7}, r"step must be in 0\.\.6; got 7"),
        ({"layer": 0, "step": 0, "head": 4}, r"head must be in 0\.\.3; got 4"),
    ],
)
def test_places_that_there_are_not(compressed: Sample, place: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_map(compressed, **place)

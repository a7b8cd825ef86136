"""Bins on an axis of tokens keep the mass; text of any kind can be drawn."""

import warnings
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from kvcompress.analysis.plots.bins import bin_edges, on_edges, per_token, rows_on_common_edges
from kvcompress.analysis.plots.text import PLACEHOLDER, counted, printable, token_text

sizes = st.integers(1, 300)


@given(tokens=sizes, bins=st.integers(1, 70))
def test_edges_hold_the_positions_that_were_sorted_into_each_bin(tokens: int, bins: int) -> None:
    occupied, edges = bin_edges(tokens, bins)
    found = {int(b): list(range(first, last)) for b, first, last in zip(occupied, edges, edges[1:], strict=False)}
    wanted: dict[int, list[int]] = {}
    for position in range(tokens):
        wanted.setdefault(position * bins // tokens, []).append(position)
    assert found == wanted


@given(tokens=sizes, seed=st.integers(0, 9))
def test_mean_per_token_times_tokens_is_the_mass(tokens: int, seed: int) -> None:
    mass = binned(np.random.default_rng(seed).random(tokens), 64)
    values, edges = per_token(mass, tokens)
    assert values @ np.diff(edges) == pytest.approx(mass.sum())


@given(tokens=sizes, later=sizes, seed=st.integers(0, 9))
def test_other_edges_keep_the_mass_and_mark_what_is_not_there_yet(tokens: int, later: int, seed: int) -> None:
    total = max(tokens, later)
    mass = binned(np.random.default_rng(seed).random(tokens), 64)
    _, edges = bin_edges(total, 64)
    values = on_edges(mass, tokens, edges)
    seen = np.diff(np.minimum(edges, tokens))
    assert np.nan_to_num(values) @ seen == pytest.approx(mass.sum())
    assert (np.isnan(values) == (edges[:-1] >= tokens)).all()


def test_even_attention_is_even_whatever_the_bins() -> None:
    tokens = np.array([65, 70, 100])
    mass = np.stack([binned(np.full(count, 1 / count), 64) for count in tokens])
    values, edges = rows_on_common_edges(mass, tokens)
    assert edges[-1] == 100
    for row, count in zip(values, tokens, strict=True):
        np.testing.assert_allclose(row[~np.isnan(row)], 1 / count)


def binned(by_token: np.ndarray, bins: int) -> np.ndarray:
    """Mass per bin, by the definition."""
    mass = np.zeros(bins)
    np.add.at(mass, np.arange(len(by_token)) * bins // len(by_token), by_token)
    return mass


@given(st.text())
def test_any_text_is_drawn_without_a_warning(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not set("\n\r\t\x00\u202e") & set(shown)


@pytest.mark.parametrize(
    "text", ["日本語", "🙂", "a\u202eb\u200b", "$x^2$ and \\frac", "<script>alert(1)</script>", "\ud800"]
)
def test_figure_with_it_is_saved(text: str) -> None:
    figure = Figure()
    figure.subplots().set_title(printable(text), parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(BytesIO())


def test_what_text_becomes() -> None:
    assert printable("é ß Ω <b>") == "é ß Ω <b>"
    assert printable("日a") == f"{PLACEHOLDER}a"
    assert token_text(" the\n") == "“·the↵”"
    assert printable("abcdef", longest=4) == "abc…"
    assert [counted(1, "query"), counted(2, "query"), counted(0, "head")] == ["1 query", "2 queries", "0 heads"]

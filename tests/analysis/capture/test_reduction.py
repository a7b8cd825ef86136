"""Reductions of attention equal their definitions, computed from the whole matrix in float64."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.capture import observation as observation_module
from kvcompress.analysis.capture.observation import Attended, observed_places, probabilities
from kvcompress.analysis.capture.raw import raw_attention
from kvcompress.analysis.capture.reduction import Frame, Reduced, reduce_attention
from kvcompress.kernels.window_scores.reference import AttentionSpec
from tests.analysis.capture.whole_attention import softmax_attention, statistics

TOLERANCE = 1e-6  # the limit between blockwise and whole, for values of order one


def attended(
    *,
    tokens: int = 90,
    first: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 8,
    causal: bool = True,
    sharpness: float = 2.0,
    gaps: bool = False,
    seed: int = 0,
    **spec: object,
) -> Attended:
    """Random queries and keys; with ``gaps`` each head has lost other keys."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(heads, tokens - first, dim, generator=generator) * sharpness
    keys = torch.randn(kv_heads, tokens, dim, generator=generator)
    positions = torch.arange(tokens).expand(kv_heads, -1)
    if gaps:
        gone = torch.rand(kv_heads, tokens, generator=generator) < 0.4
        gone[:, first:] = False
        positions = torch.where(gone, -1, positions)
        order = positions.argsort(dim=1, stable=True)
        positions, keys = positions.gather(1, order), keys.take_along_dim(order[..., None], 1)
    new = keys[:, -(tokens - first) :]
    return Attended(
        query=query,
        first_query=first,
        keys=keys,
        positions=positions,
        new_keys=new,
        new_values=new,
        spec=AttentionSpec(scaling=dim**-0.5, **spec),  # type: ignore[arg-type]
        causal=causal,
    )


def whole(view: Attended) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities by position and what is visible, ``[query_heads, queries, tokens]``, from the definition."""
    group, tokens = view.query.shape[0] // view.keys.shape[0], view.tokens
    here = torch.arange(view.first_query, tokens)[:, None]
    p = torch.zeros(view.query.shape[0], view.queries, tokens, dtype=torch.float64)
    seen = torch.zeros_like(p, dtype=torch.bool)
    for head in range(view.query.shape[0]):
        positions = view.positions[head // group]
        visible = (positions >= 0).expand(view.queries, -1)
        if view.causal:
            visible = visible & (positions <= here)
        if view.spec.sliding_window is not None:
            visible = visible & (here - positions < view.spec.sliding_window)
        sinks = None if view.spec.sinks is None else view.spec.sinks[head : head + 1]
        row = softmax_attention(
            view.query[head : head + 1], view.keys[head // group][None], visible,
            scaling=view.spec.scaling, softcap=view.spec.softcap, sinks=sinks,
        )[0]  # fmt: skip
        real = positions >= 0
        p[head][:, positions[real]] = row[:, real]
        seen[head][:, positions[real]] = visible[:, real]
    return p, seen


def reduce(view: Attended, most: int = 10_000, **frame: int) -> tuple[Reduced, torch.Tensor]:
    """The reduction, and which queries it observed."""
    places = observed_places(view.queries, most, view.query.device)
    made = {
        "tokens": view.tokens,
        "prompt_tokens": 50,
        "sink_tokens": 4,
        "recent_tokens": 16,
        **frame,
    }
    return reduce_attention(view.observe(places), Frame(**made)), places


CASES = {
    "prompt": {},
    "decode": {"first": 89},
    "later-block": {"first": 60},
    "ragged-heads": {"first": 80, "gaps": True},
    "one-token": {"tokens": 1},
    "wide-group": {"heads": 8, "kv_heads": 1},
    "no-group": {"heads": 3, "kv_heads": 3, "dim": 5},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "sliding": {"sliding_window": 20},
    "both-directions": {"causal": False},
    "sharp": {"sharpness": 60.0},
    "flat": {"sharpness": 0.0},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [1 << 19, 1 << 9])
def test_every_statistic_equals_its_definition(case: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation_module, "_CHUNK_ELEMENTS", chunk)  # many chunks, down to one query each
    view = attended(**CASES[case])  # type: ignore[arg-type]
    reduced, places = reduce(view)
    p, seen = whole(view)
    queries = (view.first_query + places).tolist()
    expected = statistics(p, seen, queries, tokens=view.tokens, prompt=50, sink=4, recent=16)
    for name, values in expected.items():
        scale = max(float(values.abs().max()), 1.0)
        difference = float((reduced.per_head[name].double() - values).abs().max()) / scale
        if name in ("coverage", "density"):  # counts: a query whose float32 sum falls on a limit may move by one key
            assert difference <= 2 / max(len(queries), 1), (name, difference)
            continue
        assert difference <= TOLERANCE, (name, difference)
    assert reduced.keys == pytest.approx(float(seen.double().sum(-1).mean()), rel=1e-6)
    mass_sum = p.sum(1).mean(0)
    torch.testing.assert_close(reduced.token_mass_sum, mass_sum, atol=TOLERANCE * len(queries), rtol=1e-6)
    later = torch.tensor(
        [max(sum(q >= t for q in queries), 1) if view.causal else len(queries) for t in range(view.tokens)]
    )
    torch.testing.assert_close(reduced.token_mass.double(), mass_sum / later, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("case", ["prompt", "later-block", "sliding", "both-directions"])
def test_heatmaps_are_means_over_query_bins(case: str) -> None:
    view = attended(**CASES[case])  # type: ignore[arg-type]
    reduced, _ = reduce(view)
    p, _ = whole(view)
    rows = (torch.arange(view.first_query, view.tokens) * 64) // view.tokens
    columns = (torch.arange(view.tokens) * 64) // view.tokens
    assert reduced.heatmap is not None
    for row in range(64):
        chosen = rows == row
        if not chosen.any():
            assert reduced.heatmap[:, row].isnan().all()
            continue
        mean = torch.zeros(p.shape[0], 64, dtype=torch.float64).index_add_(1, columns, p[:, chosen].mean(1))
        torch.testing.assert_close(reduced.heatmap[:, row].double(), mean, atol=TOLERANCE, rtol=1e-5)


def test_top_positions_are_those_of_largest_mean_mass() -> None:
    view = attended()
    reduced, _ = reduce(view)
    mass, positions = whole(view)[0].mean(1).topk(16, dim=-1)
    torch.testing.assert_close(reduced.per_head["top_mass"].double(), mass, atol=TOLERANCE, rtol=1e-5)
    assert torch.equal(reduced.per_head["top_positions"], positions)


def test_few_tokens_leave_top_places_empty() -> None:
    reduced, _ = reduce(attended(tokens=3))
    assert reduced.per_head["top_positions"].shape == (4, 16)
    assert (reduced.per_head["top_positions"][:, 3:] == -1).all()
    assert (reduced.per_head["top_mass"][:, 3:] == 0).all()


@pytest.mark.parametrize(("queries", "most"), [(1, 1), (1, 256), (90, 90), (90, 7), (32768, 256), (257, 256)])
def test_observed_queries_are_evenly_spaced_and_include_the_last(queries: int, most: int) -> None:
    places = observed_places(queries, most, torch.device("cpu")).tolist()
    assert len(places) == min(queries, most)
    assert places[-1] == queries - 1
    assert places == sorted(set(places))
    gaps = {b - a for a, b in pairwise(places)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(seed=st.integers(0, 1000), tokens=st.integers(1, 70), most=st.integers(1, 80), sharpness=st.floats(0, 20))
def test_laws_of_the_reductions(seed: int, tokens: int, most: int, sharpness: float) -> None:
    view = attended(tokens=tokens, sharpness=sharpness, seed=seed)
    reduced, _ = reduce(view, most, prompt_tokens=tokens)
    heads = reduced.per_head
    one = torch.ones(4)
    torch.testing.assert_close(heads["position_mass"].sum(-1), one, atol=1e-5, rtol=0)
    torch.testing.assert_close(heads["distance_mass"].sum(-1), one, atol=1e-5, rtol=0)
    torch.testing.assert_close(heads["prompt_mass"], one, atol=1e-5, rtol=0)
    for name in ("entropy_normalised", "maximum", "density", "sink_mass", "recent_mass", "diagonal_mass"):
        assert (heads[name] >= -1e-6).all(), name
        assert (heads[name] <= 1 + 1e-6).all(), name
    assert (heads["coverage"].diff(dim=-1) >= 0).all()
    assert (heads["coverage"] >= 1).all()
    assert (heads["diagonal_mass"] <= heads["recent_mass"] + 1e-6).all()
    assert (heads["diagonal_mass"] <= heads["maximum"] + 1e-6).all()


def test_a_query_that_sees_nothing_has_zeros() -> None:
    view = attended(tokens=6, gaps=False)
    blind = Attended(
        query=view.query, first_query=0, keys=view.keys, positions=torch.full((2, 6), -1), new_keys=view.new_keys,
        new_values=view.new_values, spec=view.spec, causal=True,
    )  # fmt: skip
    reduced, _ = reduce(blind)
    assert all(bool(values.isfinite().all()) for values in reduced.per_head.values())
    assert float(reduced.token_mass.abs().sum()) == 0.0


@pytest.mark.parametrize("case", ["prompt", "ragged-heads", "sinks", "sliding"])
def test_raw_attention_is_the_whole_matrix_by_position(case: str) -> None:
    view = attended(**CASES[case])  # type: ignore[arg-type]
    raw = raw_attention(view.observe(torch.arange(view.queries)), view.tokens, None)
    torch.testing.assert_close(raw.double(), whole(view)[0], atol=TOLERANCE, rtol=1e-5)
    some = raw_attention(view.observe(torch.arange(view.queries)), view.tokens, (3, 1))
    assert torch.equal(some, raw[[3, 1]])


def test_no_matrix_of_all_queries_and_keys_is_made() -> None:
    view = attended(tokens=3000, dim=4)
    largest = max(chunk.p.numel() for chunk in probabilities(view.observe(torch.arange(3000))))
    assert largest <= observation_module._CHUNK_ELEMENTS < 4 * 3000 * 3000 / 10

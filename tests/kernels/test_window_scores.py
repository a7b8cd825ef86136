"""window_scores against a float64 computation that holds the whole attention matrix."""

import pytest
import torch

from kvcompress.kernels.window_scores import reference
from kvcompress.kernels.window_scores.reference import (
    STATISTICS,
    AttentionSpec,
    WindowScores,
    pool,
    window_scores_reference,
)

GAMMA, POOL = 20.0, 5
EVERYTHING = {"emit": STATISTICS, "gamma": GAMMA, "pool_size": POOL}


def brute_force(query, key, spec, scored, positions=None, last_position=None, valid_queries=None) -> WindowScores:
    """The definition, in float64, query by query."""
    query, key = query.double(), key.double()
    batch, query_heads, window, _ = query.shape
    heads, tokens = key.shape[1:3]
    group = query_heads // heads
    if positions is None:
        positions, last_position = torch.arange(tokens).expand(batch, heads, tokens), tokens - 1
    positions = positions.expand(batch, heads, tokens)
    p = torch.zeros(batch, query_heads, window, tokens, dtype=torch.float64)
    for b in range(batch):
        for h in range(query_heads):
            for w in range(window):
                logits = key[b, h // group] @ query[b, h, w] * spec.scaling
                if spec.softcap is not None:
                    logits = torch.tanh(logits / spec.softcap) * spec.softcap
                at = last_position - window + 1 + w
                seen = (positions[b, h // group] >= 0) & (positions[b, h // group] <= at)
                if spec.sliding_window is not None:
                    seen &= at - positions[b, h // group] < spec.sliding_window
                if not seen.any() or (valid_queries is not None and not valid_queries[b, w]):
                    continue
                weights = torch.where(seen, logits, -torch.inf)
                if spec.sinks is not None:
                    weights = torch.cat([weights, spec.sinks[h : h + 1].double()])
                p[b, h, w] = weights.softmax(-1)[:tokens]
    p = p.view(batch, heads, group, window, tokens)[..., :scored]
    rows = []
    for b in range(batch):
        seen = p[b] if valid_queries is None else p[b][:, :, valid_queries[b]]
        several = seen.shape[2] > 1
        v = seen.var(2) if several else torch.zeros_like(seen[:, :, 0])
        mean, variance = seen.mean(2).mean(1), v.mean(1)
        surprise = -torch.special.xlogy(seen, seen)
        total = v.sum() if several else torch.tensor(torch.nan, dtype=torch.float64)
        score = pool((mean + GAMMA * variance)[None], POOL)[0]
        rows.append((score, mean, variance, seen.amax((1, 2)), surprise.sum((1, 2)), surprise.sum(), total))
    return WindowScores(*(torch.stack(part) for part in zip(*rows, strict=True)))


SHAPES = {
    "B1-H4x4-T63-W8-D16": (1, 4, 4, 63, 8, 16),
    "B2-H8x2-T111-W16-D24": (2, 8, 2, 111, 16, 24),
    "B1-H7x1-T1000-W32-D16": (1, 7, 1, 1000, 32, 16),
    "B1-H4x4-T33-W1-D16": (1, 4, 4, 33, 1, 16),
    "B1-H2x1-T9-W8-D8": (1, 2, 1, 9, 8, 8),
}
SPECS = {
    "plain": AttentionSpec(0.25),
    "softcap": AttentionSpec(0.5, softcap=3.0),
    "sliding": AttentionSpec(0.25, sliding_window=40),
}


def make(shape, dtype=torch.float64):
    batch, query_heads, heads, tokens, window, dim = shape
    generator = torch.Generator().manual_seed(7)
    query = 2 * torch.randn(batch, query_heads, window, dim, generator=generator, dtype=torch.float64)
    key = torch.randn(batch, heads, tokens, dim, generator=generator, dtype=torch.float64)
    return query.to(dtype), key.to(dtype)


def compare(got: WindowScores, wanted: WindowScores, rtol: float) -> None:
    for name, a, b in zip(WindowScores._fields, got, wanted, strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=rtol, atol=rtol * 1e-2, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_the_definition_in_float64(shape, spec) -> None:
    query, key = make(shape)
    scored = shape[3] - shape[4]
    got = window_scores_reference(query, key, spec=spec, scored=scored, **EVERYTHING)
    compare(got, brute_force(query, key, spec, scored), rtol=1e-10)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-5), (torch.float16, 2e-5)])
def test_half_inputs_are_computed_in_float32(dtype, rtol) -> None:
    """Only the inputs are rounded: a variance of tiny probabilities would vanish in half precision."""
    shape = SHAPES["B2-H8x2-T111-W16-D24"]
    query, key = make(shape, dtype)
    got = window_scores_reference(query, key, spec=AttentionSpec(0.25), scored=95, **EVERYTHING)
    assert got.mean.dtype == torch.float32
    compare(got, brute_force(query, key, AttentionSpec(0.25), 95), rtol=rtol)


def test_sinks_take_probability_away() -> None:
    shape = SHAPES["B2-H8x2-T111-W16-D24"]
    query, key = make(shape)
    spec = AttentionSpec(0.25, sinks=torch.linspace(-2, 3, 8, dtype=torch.float64))
    got = window_scores_reference(query, key, spec=spec, scored=95, **EVERYTHING)
    compare(got, brute_force(query, key, spec, 95), rtol=1e-10)
    without = window_scores_reference(query, key, spec=AttentionSpec(0.25), scored=95, emit=("mean",))
    assert (got.mean.sum(-1) < without.mean.sum(-1)).all()


@pytest.mark.parametrize("sliding", [None, 30])
def test_gaps_and_padding(sliding) -> None:
    """Evicted places differ by head, padding by row; padding queries don't count."""
    query, key = make((3, 4, 2, 50, 8, 16))
    positions = torch.arange(20, 70).expand(3, 2, 50).clone()
    positions[0, 0, :7] = -1
    positions[0, 1, :3] = -1
    positions[1, :, :46] = -1
    positions[2, :, :30] = -1
    valid = positions[:, 0, -8:] >= 0
    spec = AttentionSpec(0.25, sliding_window=sliding)
    arguments = {"positions": positions, "last_position": 69, "valid_queries": valid}
    got = window_scores_reference(query, key, spec=spec, scored=42, **arguments, **EVERYTHING)
    compare(got, brute_force(query, key, spec, 42, **arguments), rtol=1e-9)


@pytest.mark.parametrize("block", [64, 1 << 12, 1 << 30])
def test_blocks_change_nothing(block, monkeypatch) -> None:
    query, key = make((2, 4, 2, 300, 8, 16))
    whole = brute_force(query, key, AttentionSpec(0.25), 292)
    monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", block)
    compare(window_scores_reference(query, key, spec=AttentionSpec(0.25), scored=292, **EVERYTHING), whole, rtol=1e-10)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_a_given_log_sum_exp_changes_nothing(spec) -> None:
    query, key = make(SHAPES["B2-H8x2-T111-W16-D24"])
    logits = torch.einsum("bhgwd,bhtd->bhgwt", query.unflatten(1, (2, 4)), key) * spec.scaling
    if spec.softcap is not None:
        logits = torch.tanh(logits / spec.softcap) * spec.softcap
    distance = torch.arange(95, 111)[:, None] - torch.arange(111)
    visible = (distance >= 0) & (distance < (spec.sliding_window or 111))
    log_sum_exp = logits.masked_fill(~visible, -torch.inf).logsumexp(-1).flatten(1, 2)
    got = window_scores_reference(query, key, spec=spec, scored=95, log_sum_exp=log_sum_exp, **EVERYTHING)
    compare(got, brute_force(query, key, spec, 95), rtol=1e-10)


@pytest.mark.parametrize("emit", [(), ("score",), ("mean", "entropy"), ("maximum",), ("score", "variance")])
def test_only_what_was_asked_for_comes_out(emit) -> None:
    query, key = make(SHAPES["B2-H8x2-T111-W16-D24"])
    whole = window_scores_reference(query, key, spec=AttentionSpec(0.25), scored=95, **EVERYTHING)
    got = window_scores_reference(
        query, key, spec=AttentionSpec(0.25), scored=95, emit=emit, gamma=GAMMA, pool_size=POOL
    )
    for name, field in zip(STATISTICS, WindowScores._fields, strict=False):
        if name in emit:
            assert torch.equal(getattr(got, field), getattr(whole, field))
        else:
            assert getattr(got, field) is None
    assert torch.equal(got.entropy, whole.entropy)
    assert torch.equal(got.total_variance, whole.total_variance)


def test_the_attention_matrix_is_never_held() -> None:
    """Peak of live temporaries at 16k tokens stays far below the window's attention matrix."""
    query, key = torch.randn(1, 8, 32, 16), torch.randn(1, 2, 16384, 16)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if (
                    isinstance(tensor, torch.Tensor)
                    and tensor.untyped_storage().data_ptr() != key.untyped_storage().data_ptr()
                ):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return result

    with Watch():
        window_scores_reference(query, key, spec=AttentionSpec(0.25), scored=16352)
    matrix = 8 * 32 * 16384 * 4
    assert largest <= matrix / 8

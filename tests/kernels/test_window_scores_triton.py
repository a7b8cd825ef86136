"""The Triton kernels of window_scores against float64: in the interpreter on small shapes, on a GPU on large ones."""

import math

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from kvcompress.kernels.softcap import softcapped
from kvcompress.kernels.window_scores import launch
from kvcompress.kernels.window_scores.op import window_scores
from kvcompress.kernels.window_scores.reference import (
    STATISTICS,
    AttentionSpec,
    WindowScores,
    window_scores_reference,
)
from tests.kernels.window_scores_cases import EVERYTHING, LARGE, SHAPES, SPECS, make, spec_of

# Per key: float32 products of some ten terms each, and exp2 of a logit near 30, whose rounding is 30 * 2^-24. Half
# inputs are compared on the same rounded numbers: what is left is the order of summation in tensor cores.
PER_KEY = {torch.float32: 1e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5}
# Tensor cores cut sums of 16-bit products off where the CPU rounds them, once for every sixteen dimensions. Worked out
# for these shapes, the total variance is then off by up to 1.9e-6, and that of a key by 5.4e-6, to which the hardware's
# power of two adds two units in the last place of each probability.
PER_KEY_IN_TENSOR_CORES, TOTALS_IN_TENSOR_CORES = 4e-5, 4e-6
TOTALS = 1e-6  # errors of single keys average out, and the sums over splits are float64


def compare(got: WindowScores, wanted: WindowScores, dtype: torch.dtype) -> None:
    for name, a, b in zip(WindowScores._fields, got, wanted, strict=True):
        if b is None:
            assert a is None, name
            continue
        assert a.dtype == torch.float32
        per_key, totals = PER_KEY[dtype], TOTALS
        if a.is_cuda and dtype != torch.float32:
            per_key, totals = PER_KEY_IN_TENSOR_CORES, TOTALS_IN_TENSOR_CORES
        rtol = totals if name in ("entropy", "total_variance") else per_key
        a, b = a.double().cpu(), b.double().cpu()
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-11, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def check(query, key, spec, scored, **arguments) -> WindowScores:
    """Compares with the reference in float64 of the same numbers; returns the kernels' results."""
    arguments = {**EVERYTHING, **arguments}
    got = window_scores(query, key, spec=spec, scored=scored, **arguments)
    exact = spec._replace(sinks=None if spec.sinks is None else spec.sinks.double())
    wanted = window_scores_reference(query.double(), key.double(), spec=exact, scored=scored, **arguments)
    compare(got, wanted, query.dtype)
    return got


def check_shape(shape, spec_name, dtype, device) -> None:
    query, key = make(shape, dtype, device)
    spec = spec_of(spec_name, shape[1], shape[3], device)
    check(query, key, spec, shape[3] - shape[4])


def padded(device, batch=2, heads=2, keys=90, window=12):
    """Left padding of seven keys in the second row, gaps in the first, and two padding queries."""
    positions = torch.arange(keys, device=device).repeat(batch, heads, 1)
    positions[1] = (positions[1] - 7).clamp(min=-1)
    positions[0, 0, 5:9] = -1
    positions[0, 0, 9 : keys - window] += 3
    positions[0, :, keys - window :] += 5
    positions[1, :, keys - window :] += 12
    valid = torch.ones(batch, window, dtype=torch.bool, device=device)
    valid[1, :2] = False
    return {"positions": positions, "last_position": keys + 4, "valid_queries": valid}


def natural_log_sum_exp(query, key, spec) -> torch.Tensor:
    """Of every query's logits, sinks included, in float64."""
    group, window, keys = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    logits = torch.matmul(query.double(), key.double().repeat_interleave(group, 1).transpose(-1, -2)) * spec.scaling
    if spec.softcap is not None:
        logits = torch.tanh(logits / spec.softcap) * spec.softcap
    distance = torch.arange(keys - window, keys)[:, None] - torch.arange(keys)
    logits = logits.masked_fill((distance < 0) | (distance >= (spec.sliding_window or keys)), -torch.inf)
    if spec.sinks is not None:
        logits = torch.cat([logits, spec.sinks.double()[:, None, None].expand_as(logits[..., :1])], -1)
    return logits.logsumexp(-1)


@pytest.mark.interpret
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_float64(shape, spec) -> None:
    check_shape(shape, spec, torch.float32, "cpu")


@pytest.mark.interpret
@pytest.mark.parametrize("spec", ["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_lose_nothing_more(dtype, spec) -> None:
    check_shape((2, 14, 2, 111, 32, 80), spec, dtype, "cpu")


@pytest.mark.interpret
@pytest.mark.parametrize("spec", SPECS)
def test_splits_are_joined(spec, monkeypatch) -> None:
    monkeypatch.setattr(launch, "SPLITS", ((8192, 64),))
    check_shape((1, 4, 2, 300, 8, 16), spec, torch.float32, "cpu")


@pytest.mark.interpret
@pytest.mark.parametrize("spec", ["sinks", "sliding"])
def test_real_splits_are_joined(spec) -> None:
    assert launch.split_of(4300) == 512
    check_shape((1, 2, 1, 4300, 8, 16), spec, torch.bfloat16, "cpu")


@pytest.mark.interpret
@pytest.mark.parametrize("scored", [0, 1, 55, 63, 64, 70])
def test_any_number_of_keys_is_scored(scored) -> None:
    query, key = make((2, 4, 2, 70, 16, 16), torch.float32)
    check(query, key, spec_of("plain", 4, 70), scored)


@pytest.mark.interpret
def test_fewer_keys_than_queries() -> None:
    query, key = make((1, 2, 1, 5, 8, 16), torch.float32)
    check(query, key, AttentionSpec(0.25), 5)


@pytest.mark.interpret
@pytest.mark.parametrize("scored", [0, 20])
@pytest.mark.parametrize("window", [1, 3])
def test_totals_where_nothing_or_little_is_scored(scored, window) -> None:
    query, key = make((2, 2, 1, 23, window, 16), torch.float32)
    got = check(query, key, AttentionSpec(0.25), scored)
    assert bool(got.total_variance.isnan().all()) is (window == 1)
    assert bool((got.entropy == 0).all()) is (scored == 0)


@pytest.mark.interpret
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("scored", [78, 90])
def test_padding_and_gaps(scored, spec) -> None:
    query, key = make((2, 4, 2, 90, 12, 16), torch.float32)
    check(query, key, spec_of(spec, 4, 90), scored, **padded("cpu"))


@pytest.mark.interpret
def test_positions_shared_by_heads_and_batch() -> None:
    query, key = make((2, 4, 2, 90, 12, 16), torch.float32)
    each = torch.arange(90) * 2
    each[3:6] = -1
    spec = AttentionSpec(0.2, sliding_window=120)
    whole = check(query, key, spec, 78, positions=each.expand(2, 2, 90), last_position=178)
    shared = window_scores(
        query, key, spec=spec, scored=78, positions=each.expand(2, 1, 90), last_position=178, **EVERYTHING
    )
    assert all(torch.equal(a, b) for a, b in zip(whole, shared, strict=True))


@pytest.mark.interpret
@pytest.mark.parametrize("counted", [0, 1, 2, 12])
def test_queries_that_count(counted) -> None:
    query, key = make((2, 4, 2, 90, 12, 16), torch.float32)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, counted:] = False
    got = check(query, key, AttentionSpec(0.25), 78, valid_queries=valid)
    assert bool(got.total_variance[1].isnan()) is (counted < 2)
    assert not got.total_variance[0].isnan()


@pytest.mark.interpret
def test_a_query_that_sees_nothing_has_probability_zero() -> None:
    query, key = make((1, 2, 1, 40, 4, 16), torch.float32)
    positions = torch.arange(40)[None, None].clone()
    positions[..., :38] = -1  # the first two queries of the window see no key
    got = check(query, key, AttentionSpec(0.25), 40, positions=positions, last_position=39)
    assert torch.equal(got.mean[..., :38], torch.zeros(1, 1, 38))
    assert all(bool(statistic.isfinite().all()) for statistic in got)


@pytest.mark.interpret
def test_content_of_hidden_keys_does_not_matter() -> None:
    query, key = make((2, 4, 2, 90, 12, 16), torch.float32)
    arguments = {**EVERYTHING, **padded("cpu")}
    clean = window_scores(query, key, spec=AttentionSpec(0.25), scored=78, **arguments)
    key = key.masked_fill((arguments["positions"] < 0)[..., None], torch.nan)
    dirty = window_scores(query, key, spec=AttentionSpec(0.25), scored=78, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


@pytest.mark.interpret
@pytest.mark.parametrize("spec", SPECS)
def test_a_given_log_sum_exp_saves_the_first_pass(spec, monkeypatch) -> None:
    query, key = make((2, 8, 2, 111, 16, 16), torch.float32)
    wanted = spec_of(spec, 8, 111)
    log_sum_exp = natural_log_sum_exp(query, key, wanted)
    monkeypatch.setattr(launch, "_log_sum_exp", lambda problem: pytest.fail("the keys were read twice"))
    check(query, key, wanted, 95, log_sum_exp=log_sum_exp)


@pytest.mark.interpret
@pytest.mark.parametrize("gamma", [0.0, 20.0])
@pytest.mark.parametrize("emit", [(), ("score",), ("mean", "entropy"), ("maximum",), ("score", "variance", "mean")])
def test_only_what_was_asked_for_comes_out(emit, gamma) -> None:
    query, key = make((1, 7, 1, 60, 32, 16), torch.float32)
    arguments = {"spec": AttentionSpec(0.25), "scored": 28, "gamma": gamma}
    whole = window_scores(query, key, emit=STATISTICS, **arguments)
    got = window_scores(query, key, emit=emit, **arguments)
    for name, a, b in zip((*STATISTICS, "entropy", "total"), got, whole, strict=True):
        assert torch.equal(a, b) if name in emit or a is not None else name not in emit
    assert [each is not None for each in got[:5]] == [name in emit for name in STATISTICS]


@pytest.mark.interpret
@pytest.mark.parametrize("pool_size", [1, 3, 7, 63])
def test_pooling_counts_zeros_beyond_the_ends(pool_size) -> None:
    query, key = make((1, 4, 2, 40, 8, 16), torch.float32)
    check(query, key, AttentionSpec(0.25), 32, pool_size=pool_size)


@pytest.mark.interpret
def test_rows_do_not_depend_on_each_other() -> None:
    query, key = make((3, 4, 2, 90, 12, 16), torch.float32)
    whole = window_scores(query, key, spec=AttentionSpec(0.25), scored=78, **EVERYTHING)
    for row in range(3):
        part = slice(row, row + 1)
        alone = window_scores(query[part], key[part], spec=AttentionSpec(0.25), scored=78, **EVERYTHING)
        assert all(torch.equal(a[part], b) for a, b in zip(whole, alone, strict=True))


@pytest.mark.interpret
@pytest.mark.parametrize("how", ["tokens before heads", "slice", "last axis apart"])
def test_strides_change_nothing(how) -> None:
    query, key = make((2, 4, 2, 90, 12, 16), torch.float32)
    valid = torch.ones(2, 12, dtype=torch.bool)
    whole = window_scores(query, key, spec=AttentionSpec(0.25), scored=78, valid_queries=valid, **EVERYTHING)
    if how == "tokens before heads":
        query, key = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (query, key))
    elif how == "slice":
        query, key = torch.cat([query, query], 2)[:, :, 12:], torch.cat([key, key], 3)[..., 16:]
        valid = torch.cat([valid, ~valid], 1)[:, :12]
    else:
        query, key = (each.transpose(2, 3).contiguous().transpose(2, 3) for each in (query, key))
    assert not query.is_contiguous()
    got = window_scores(query, key, spec=AttentionSpec(0.25), scored=78, valid_queries=valid, **EVERYTHING)
    assert all(torch.equal(a, b) for a, b in zip(got, whole, strict=True))


@triton.jit
def _softcap_kernel(x_ptr, y_ptr, softcap, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, softcapped(tl.load(x_ptr + i), softcap))


def check_softcap(device, softcap) -> None:
    size = torch.logspace(-12, math.log10(12), 32768, dtype=torch.float64) * softcap
    x = torch.cat([size, -size]).float().to(device)
    y = torch.empty_like(x)
    _softcap_kernel[(1,)](x, y, softcap, BLOCK=65536)
    exact = softcap * torch.tanh(x.double() / softcap)
    assert float(((y.double() - exact) / exact).abs().max()) < 4e-7  # a division, a product and the polynomial round


@pytest.mark.interpret
@pytest.mark.parametrize("softcap", [1.0, 30.0, 50.0])
def test_softcap_has_all_digits(softcap) -> None:
    check_softcap("cpu", softcap)


@pytest.mark.gpu
@pytest.mark.parametrize("softcap", [1.0, 30.0, 50.0])
def test_softcap_has_all_digits_on_a_gpu(softcap) -> None:
    check_softcap("cuda", softcap)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE.keys())
def test_equals_float64_on_a_gpu(shape, spec, dtype) -> None:
    check_shape(shape, spec, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("spec", SPECS)
def test_padding_and_gaps_on_a_gpu(spec) -> None:
    query, key = make((2, 4, 2, 5000, 12, 64), torch.bfloat16, "cuda")
    check(query, key, spec_of(spec, 4, 5000, "cuda"), 4990, **padded("cuda", keys=5000))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_the_host_waits_for_nothing() -> None:
    query, key = make((2, 4, 2, 5000, 12, 64), torch.bfloat16, "cuda")
    arguments = {"spec": spec_of("all", 4, 5000, "cuda"), "scored": 4988, **padded("cuda", keys=5000), **EVERYTHING}
    first = window_scores(query, key, **arguments)
    try:
        torch.cuda.set_sync_debug_mode("error")
        again = window_scores(query, key, **arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

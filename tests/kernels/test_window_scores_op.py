"""window_scores as an operator of torch: registration, compilation and what it refuses. No kernel runs here."""

import pytest
import torch

from kvcompress.kernels.dispatch import interpreting
from kvcompress.kernels.window_scores import op
from kvcompress.kernels.window_scores.reference import STATISTICS, AttentionSpec, window_scores_reference

pytestmark = pytest.mark.skipif(interpreting(), reason="the operator would run the kernels in the interpreter")

FULL = AttentionSpec(0.25, softcap=4.0, sinks=torch.linspace(-1, 1, 4), sliding_window=30)
ARGUMENTS = {
    "plain": {"spec": AttentionSpec(0.25), "scored": 42, "gamma": 20.0, "pool_size": 5},
    "gamma 0, nothing pooled": {"spec": AttentionSpec(0.25), "scored": 42, "emit": ("score", "mean")},
    "nothing scored": {"spec": AttentionSpec(0.25), "scored": 0, "emit": STATISTICS},
    "everything": {
        "spec": FULL,
        "scored": 42,
        "emit": STATISTICS,
        "gamma": 20.0,
        "pool_size": 5,
        "positions": torch.arange(50).repeat(2, 1, 1) + 3,
        "last_position": 52,
        "valid_queries": torch.arange(8)[None].expand(2, 8) > 1,
    },
    "log-sum-exp": {"spec": AttentionSpec(0.25), "scored": 42, "log_sum_exp": torch.full((2, 4, 8), 9.0)},
}
CASES = pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS.keys())


def make(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 4, 8, 16, generator=generator).to(dtype)
    return query, torch.randn(2, 2, 50, 16, generator=generator).to(dtype)


def flat(spec, scored, emit=("score",), gamma=0.0, pool_size=1, **others):
    """The arguments of the operator itself, after query and key."""
    optional = (others.get(name) for name in ("positions", "last_position", "valid_queries", "log_sum_exp"))
    wanted = [name in emit for name in STATISTICS]
    return (
        *(spec.scaling, scored, wanted, gamma, pool_size, spec.softcap, spec.sinks, spec.sliding_window),
        *optional,
    )


def assert_equal(got, wanted, *, exact=True) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-6, "atol": 1e-9}
            torch.testing.assert_close(a, b, equal_nan=True, **tolerance)


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference_on_a_cpu(arguments, dtype) -> None:
    query, key = make(dtype)
    assert_equal(op.window_scores(query, key, **arguments), window_scores_reference(query, key, **arguments))


@CASES
def test_is_a_sound_operator(arguments) -> None:
    torch.library.opcheck(op._window_scores, (*make(), *flat(**arguments)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # inductor's own, in torch 2.13
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@CASES
def test_compiles_into_one_graph(arguments, backend) -> None:
    def doubled(query, key):
        return op.window_scores(query * 2, key, **arguments)

    query, key = make()
    torch._dynamo.reset()
    compiled = torch.compile(doubled, fullgraph=True, backend=backend)
    assert_equal(compiled(query, key), doubled(query, key))
    assert_equal(compiled(-query, key), doubled(-query, key))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float64}, "float32, float16 or bfloat16 .* got torch.float64 .* backend='torch'"),
        ({"query": torch.zeros(2, 4, 8, 528)}, "heads of at most 512, .* backend='torch'"),
        ({"query": torch.zeros(2, 4, 33, 272)}, "of such as these at most 32 queries; .* backend='torch'"),
        ({"query": torch.zeros(2, 4, 129, 16)}, "at most 128 queries; .* backend='torch'"),
        ({"query": torch.zeros(2, 3, 8, 16)}, r"kv_heads divide query_heads; got \[2, 3, 8, 16\]"),
        ({"query": torch.zeros(2, 4, 8, 24)}, "must agree in batch and head_dim"),
        ({"scored": 51}, "scored must be from 0 to the number of keys, 50; got 51"),
        ({"scored": -1}, "scored must be from 0"),
        ({"pool_size": 4}, "pool_size must be odd and at least 1; got 4"),
        ({"positions": torch.zeros(2, 1, 50, dtype=torch.int64)}, "last_position must be given with positions"),
        ({"emit": ("median",)}, "emit must hold of score, .*; got median"),
    ],
)
def test_refuses_what_the_kernels_do_not_know(change, message) -> None:
    query, key = make(change.get("dtype", torch.float32))
    arguments = {"spec": AttentionSpec(0.25), "scored": 42, "query": query, **change}
    arguments.pop("dtype", None)
    with pytest.raises(ValueError, match=message):
        op.window_scores(key=key, **arguments)

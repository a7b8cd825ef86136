"""How exact window_scores is per key: the kernel beside torch in float32, both against float64.

A probability is ``exp(q·k·scaling - lse)``: an absolute error of the logit is a relative one of the probability, and
twice that of the variance where one query dominates. A float32 logit near 10 carries some 1e-6, whoever computes it.
"""

import pytest
import torch

pytest.importorskip("triton")

from kvcompress.kernels.window_scores.op import window_scores
from kvcompress.kernels.window_scores.reference import Statistic, WindowScores, window_scores_reference
from tests.kernels.window_scores_cases import SHAPES, SPECS, make, spec_of
from tests.tolerances import ERROR_FACTOR

GOAL = 1e-6
NEGLIGIBLE = 1e-11  # probabilities and variances below it are left out: nothing is decided there
EMIT: tuple[Statistic, ...] = ("variance", "entropy")
PER_KEY = ("variance", "token_entropy")
TOTALS = ("entropy", "total_variance")  # errors of single keys average out


def results_of(
    shape: tuple[int, ...], spec_name: str, dtype: torch.dtype
) -> tuple[WindowScores, WindowScores, WindowScores]:
    """Of the kernel, of torch in float32, and in float64, from the same numbers."""
    query, key = make(shape, dtype)
    spec, scored = spec_of(spec_name, shape[1], shape[3]), shape[3] - shape[4]
    exact_spec = spec._replace(sinks=None if spec.sinks is None else spec.sinks.double())
    return (
        window_scores(query, key, spec=spec, scored=scored, emit=EMIT),
        window_scores_reference(query, key, spec=spec, scored=scored, emit=EMIT),
        window_scores_reference(query.double(), key.double(), spec=exact_spec, scored=scored, emit=EMIT),
    )


def relative_errors(got: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Of all elements that matter, as one vector."""
    matters = exact.abs() > NEGLIGIBLE
    return ((got.double() - exact).abs() / exact.abs())[matters]


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("dtype", "spec"),
    [*((torch.float32, spec) for spec in SPECS), (torch.bfloat16, "plain"), (torch.bfloat16, "all")],
)
def test_statistics_err_no_more_than_torch_in_float32(dtype: torch.dtype, spec: str) -> None:
    results = [results_of(shape, spec, dtype) for shape in SHAPES.values() if shape[4] > 1]
    for name in (*PER_KEY, *TOTALS):
        columns = [[getattr(result, name) for result in each] for each in results]
        # One key of one shape is luck: the worst of all shapes is compared.
        kernel = torch.cat([relative_errors(got, exact) for got, _, exact in columns])
        plain = torch.cat([relative_errors(got, exact) for _, got, exact in columns])
        allowed = GOAL if name in TOTALS else max(GOAL, ERROR_FACTOR * float(plain.max()))
        assert kernel.max() <= allowed, name
        assert kernel.square().mean().sqrt() <= GOAL, name

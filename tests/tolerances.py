"""How far a result may be from its float64 reference, per dtype: the one source of tolerances for all tests.

They bound rounding, not mistakes. The measure of a kernel is the second rule: its largest error against the
float64 reference is at most ERROR_FACTOR times the largest error of plain torch in the same dtype (never
judged below one rounding step, where the better of two correct answers is a matter of luck). Indices have no
tolerance: they are exact, with the tie rule stated by the function that returns them.
"""

import torch

# {dtype: (atol, rtol)} for values of order one, such as attention outputs and normalised scores.
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    # Same formula, another order of summation: some hundred roundings of 2^-53.
    torch.float64: (1e-12, 1e-12),
    # Sums of a few thousand terms accumulate in float32: about sqrt(4096) roundings of 2^-24, with room.
    torch.float32: (1e-5, 1e-5),
    # Inputs and the result are rounded to 11 bits (2^-11 = 4.9e-4); the sums between them stay in float32.
    torch.float16: (2e-3, 2e-3),
    # The same with 8 bits (2^-8 = 3.9e-3).
    torch.bfloat16: (1.6e-2, 1.6e-2),
}

ERROR_FACTOR = 2.0


def max_error(actual: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest absolute difference from a float64 reference; NaN anywhere gives NaN."""
    if actual.shape != reference.shape:
        raise ValueError(f"shapes must agree, got {tuple(actual.shape)} and {tuple(reference.shape)}")
    if actual.numel() == 0:
        return 0.0
    return float((actual.detach().double().cpu() - reference.detach().double().cpu()).abs().max())


def assert_close(actual: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Fail unless `actual` is within TOLERANCES[dtype] of the reference; the default is its own dtype."""
    atol, rtol = TOLERANCES[dtype or actual.dtype]
    torch.testing.assert_close(actual.detach().double().cpu(), reference.detach().double().cpu(), atol=atol, rtol=rtol)


def assert_as_accurate(actual: torch.Tensor, same_dtype: torch.Tensor, reference: torch.Tensor) -> None:
    """Fail unless `actual` errs at most ERROR_FACTOR times as much as torch in the same dtype does.

    Args:
        actual: the kernel's result.
        same_dtype: plain torch's result from the same inputs, in the same dtype.
        reference: the result in float64, of the same shape.
    """
    one_step = torch.finfo(actual.dtype).eps * max(float(reference.abs().max()), 1.0) if actual.numel() else 0.0
    allowed = ERROR_FACTOR * max(max_error(same_dtype, reference), one_step)
    got = max_error(actual, reference)
    assert got <= allowed, (  # NaN fails too
        f"largest error {got:.3e} exceeds {allowed:.3e}; "
        f"torch in {actual.dtype} errs {max_error(same_dtype, reference):.3e}"
    )

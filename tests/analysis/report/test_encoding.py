"""Arrays on the page: exact where promised, within half a step where not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kvcompress.analysis.report.encoding import (
    LEVELS,
    Coding,
    choose,
    encode_byte,
    encode_exact,
    encode_floats,
    encode_half,
    encode_integers,
    size_of,
)
from tests.analysis.report.unpacking import unpack

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9))
HALF_ROUNDING = 2.0**-11  # of 11 significant bits


@given(arrays.arrays(np.int64, SHAPES, elements=st.integers(-(2**40), 2**40)))
def test_integers_come_back_exactly(values: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack(encode_integers(values)), values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((0, 255), "u8"),
        ((0, 256), "u16"),
        ((-1, 254), "u8"),
        ((-1, 255), "u16"),
        ((0, 70_000), "i32"),
        ((0, 2**31), "f64"),
    ],
)
def test_integers_take_as_few_bytes_as_hold_them(values: tuple[int, int], name: str) -> None:
    assert encode_integers(np.array([values]))["type"] == name


@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_single_precision_comes_back_exactly(values: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack(encode_exact(values)), values.astype(np.float64))


@given(arrays.arrays(np.float64, SHAPES, elements=st.floats(1e-4, 1.0)), st.integers(-60, 60))
def test_halves_keep_eleven_bits_at_any_scale(values: np.ndarray, exponent: int) -> None:
    scaled = values * 2.0**exponent
    error = np.abs(unpack(encode_half(scaled)) - scaled) / scaled
    assert error.max() <= HALF_ROUNDING


def test_halves_keep_what_is_no_number() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.0, -3.0]])
    np.testing.assert_array_equal(unpack(encode_half(values)), values)


def test_small_arrays_are_exact_and_large_ones_halves() -> None:
    assert encode_floats(np.ones((4, 4)))["type"] == "f32"
    assert encode_floats(np.ones((300, 300)))["type"] == "f16"


@given(arrays.arrays(np.float64, SHAPES, elements=st.floats(1e-5, 1.0)))
def test_bytes_of_positive_values_err_by_half_a_step_of_their_row(values: np.ndarray) -> None:
    got = unpack(encode_byte(values))
    for row, read in zip(values, got, strict=True):
        step = (math.log(row.max()) - math.log(row.min())) / LEVELS
        assert np.abs(np.log(read) - np.log(row)).max() <= step / 2 + 1e-12


@given(arrays.arrays(np.float64, SHAPES, elements=st.floats(-5.0, 5.0)))
def test_bytes_of_signed_values_err_by_half_a_step_of_their_row(values: np.ndarray) -> None:
    values[0, 0] = -1.0  # one negative value: even steps
    got = unpack(encode_byte(values))
    for row, read in zip(values, got, strict=True):
        assert np.abs(read - row).max() <= (row.max() - row.min()) / LEVELS / 2 + 1e-12


def test_bytes_keep_zero_and_nan() -> None:
    values = np.array([[0.0, np.nan, 1e-3, 1.0], [np.nan, np.nan, np.nan, np.nan]])
    got = unpack(encode_byte(values))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(values))
    assert got[0, 0] == 0.0


def test_first_coding_within_the_limit_is_chosen() -> None:
    values = np.random.default_rng(0).random((4, 5000))
    codings = [
        Coding(name=name, encode=encode, note="") for name, encode in (("half", encode_half), ("byte", encode_byte))
    ]
    sizes = {coding.name: size_of(coding.encode(values)) for coding in codings}
    assert sizes["byte"] < sizes["half"]
    for limit, wanted in ((sizes["half"], "half"), (sizes["half"] - 1, "byte"), (sizes["byte"] - 1, None)):
        found = choose(values, codings, limit)
        assert (found[1].name if found else None) == wanted

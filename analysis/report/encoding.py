"""Arrays as JSON: base64 of compressed little-endian numbers, in fewer bits where that is asked for."""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Encoded = dict[str, Any]

EXACT_BYTES: Final = 256 * 1024  # float arrays up to this size keep all their 24 bits
LEVELS: Final = 253  # of an 8-bit code; 0 is zero (or the least), 254 the greatest, 255 NaN
NAN_CODE: Final = 255
LEVEL, FASTEST_ABOVE = 6, 4 * 1024 * 1024  # gzip
_LARGEST_HALF = 2.0**15


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """A way to write an array.

    Attributes:
        name: ``exact``, ``half``, ``byte``, ``mean half`` or ``mean byte``.
        encode: writes it.
        note: what is lost, for the page's reader; empty where nothing is.
    """

    name: str
    encode: Callable[[Array], Encoded]
    note: str


def size_of(encoded: Mapping[str, Any]) -> int:
    """Bytes that an encoded array adds to the page."""
    return len(encoded["data"])


def encode_integers(values: Array) -> Encoded:
    """Writes whole numbers in as few bytes as hold them all.

    Args:
        values: integers of any shape.

    Returns:
        ``{type, shape, offset, data}``; a value is the number written plus ``offset``, which is at most 0.
    """
    low, high = (min(0, int(values.min())), int(values.max())) if values.size else (0, 0)
    for name, dtype in (("u8", "u1"), ("u16", "<u2"), ("i32", "<i4")):
        if high - low <= np.iinfo(dtype).max:
            return {**_packed(name, (values - low).astype(dtype)), "offset": low}
    return _packed("f64", values.astype("<f8"))  # exact up to 2^53, as every number of JavaScript


def encode_floats(values: Array) -> Encoded:
    """Writes real numbers: exactly (32 bits) where the array is small, else with 11 significant bits."""
    return encode_exact(values) if values.size * 4 <= EXACT_BYTES else encode_half(values)


def encode_exact(values: Array) -> Encoded:
    """Writes real numbers as float32."""
    return _packed("f32", values.astype("<f4"))


def encode_half(values: Array) -> Encoded:
    """Writes real numbers as float16 times one power of two, by which the largest magnitude nears float16's own.

    Returns:
        ``{type, shape, scale, data}``; a value is the half times ``scale``. Magnitudes below ``2**-29`` of the largest
        lose significant bits, one by one.
    """
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 0.0
    scale = 2.0 ** math.ceil(math.log2(largest / _LARGEST_HALF)) if largest > 0 else 1.0
    halves = (values.astype(np.float64) / scale).astype("<f2")
    return {**_packed("f16", halves), "scale": scale}


def encode_byte(values: Array) -> Encoded:
    """Writes real numbers in 8 bits each: evenly in their logarithm, or evenly where one of them is negative.

    Args:
        values: ``[first, ...]``; each index of the first axis has bounds of its own.

    Returns:
        ``{type, shape, low, high, data}`` with ``low`` and ``high`` per first index. Positive values below a
        millionth of the largest count as that millionth.
    """
    rows = values.reshape(values.shape[0], -1).astype(np.float64)
    finite = np.isfinite(rows)
    even = bool((rows[finite] < 0).any())
    with np.errstate(invalid="ignore", divide="ignore"):
        usable = finite & (even | (rows > 0))
        mapped = np.where(usable, rows if even else np.log(np.where(usable, rows, 1.0)), np.nan)
    low, high = _bounds(mapped, usable)
    if not even:
        low = np.maximum(low, high - math.log(1e6))
    span = np.where(high > low, high - low, 1.0)[:, None]
    codes = np.where(usable, 1 + np.clip((mapped - low[:, None]) / span, 0, 1) * LEVELS, 0)
    codes = np.where(np.isnan(rows), NAN_CODE, np.rint(codes))
    codes = np.where(np.isposinf(rows), LEVELS + 1, codes).astype("u1")
    packed = _packed("even" if even else "logarithmic", codes.reshape(values.shape))
    return {**packed, "low": low.tolist(), "high": high.tolist()}


def choose(values: Array, codings: Sequence[Coding], limit: int) -> tuple[Encoded, Coding] | None:
    """The first of some codings by which an array is not larger than it may be.

    Args:
        values: the array.
        codings: best first.
        limit: most bytes of text.

    Returns:
        The encoded array and the coding, or None where none is small enough.
    """
    for coding in codings:
        encoded = coding.encode(values)
        if size_of(encoded) <= limit:
            return encoded, coding
    return None


def _bounds(mapped: Array, usable: Array) -> tuple[Array, Array]:
    """Least and greatest usable value of each row, 0 where a row has none."""
    some = usable.any(1)
    low = np.where(some, np.where(usable, mapped, np.inf).min(1, initial=np.inf), 0.0)
    high = np.where(some, np.where(usable, mapped, -np.inf).max(1, initial=-np.inf), 0.0)
    return low, high


def _packed(name: str, values: Array) -> Encoded:
    """The bytes of an array: each number's first byte, then each one's second and so on, which compresses better."""
    width = values.dtype.itemsize
    planes = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, width).T
    level = 1 if planes.size > FASTEST_ABOVE else LEVEL
    packed = gzip.compress(planes.tobytes(), compresslevel=level, mtime=0)
    return {"type": name, "shape": list(values.shape), "data": base64.b64encode(packed).decode("ascii")}

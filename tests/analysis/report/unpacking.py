"""Reads a page back: its data blocks, and its arrays by plain float64 arithmetic."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvcompress.analysis.report.encoding import Array

DTYPES = {"u8": "u1", "u16": "<u2", "i32": "<i4", "f64": "<f8", "f32": "<f4", "f16": "<f2"}


def unpack(encoded: Mapping[str, Any]) -> Array:
    """Return the numbers of an encoded array as float64."""
    dtype = np.dtype(DTYPES.get(encoded["type"], "u1"))
    planes = np.frombuffer(gzip.decompress(base64.b64decode(encoded["data"])), np.uint8)
    numbers = np.ascontiguousarray(planes.reshape(dtype.itemsize, -1).T).view(dtype).astype(np.float64)
    values = numbers.reshape(encoded["shape"]) * encoded.get("scale", 1.0) + encoded.get("offset", 0)
    if encoded["type"] not in {"logarithmic", "even"}:
        return values
    even = encoded["type"] == "even"
    for low, high, row in zip(encoded["low"], encoded["high"], values, strict=True):
        codes = row.copy()
        place = low + (codes - 1) / 253 * (high - low)
        row[...] = np.where(codes == 0, -np.inf if even else 0.0, place if even else np.exp(place))
        row[codes == 255] = np.nan
    return values


def blocks(page: str) -> dict[str, Any]:
    """Return {id: content} of the JSON blocks of a page."""
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def sample_block(path: Path, index: int = 0) -> dict[str, Any]:
    """Return the data of a sample of a page."""
    block: dict[str, Any] = blocks(path.read_text(encoding="utf-8"))[f"sample-{index}"]
    return block

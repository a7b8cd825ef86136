"""Values as JSON has them: numbers, texts, lists, objects, and null where a number does not apply."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvcompress.analysis.files import replace_text


def to_json(value: object, name: str = "value") -> Any:
    """Turns a value into what strict JSON can say.

    Tensors and arrays become nested lists, NaN and infinities null, float32 numbers their shortest decimal form.

    Args:
        value: None, a bool, number, text, tensor, array, or a mapping (with texts as keys), list or tuple of such.
        name: what an error calls it.

    Raises:
        TypeError: something else is in it.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _array(np.asarray(value), name)
    if isinstance(value, torch.Tensor):
        return _array(_numbers(value), name)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key, name): to_json(part, f"{name}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part, f"{name}[{place}]") for place, part in enumerate(value)]
    raise TypeError(
        f"{name} must be made of numbers, texts, lists, mappings, tensors and None, so that JSON can say it; "
        f"got {type(value).__name__}"
    )


def write_json(path: Path, content: object) -> None:
    """Writes strict JSON (no NaN), whole or not at all; the folder is made.

    Raises:
        OSError: it cannot be written.
    """
    replace_text(path, json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def _key(key: object, name: str) -> str:
    if isinstance(key, str):
        return key
    raise TypeError(f"{name} must have texts as keys, since JSON has no others; got {key!r}")


def _numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    on_host = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (on_host.float() if on_host.dtype == torch.bfloat16 else on_host).numpy()
    return array


def _array(array: np.ndarray[Any, Any], name: str) -> Any:
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must hold numbers; got an array of {array.dtype}")
    if array.dtype != np.float64:
        # Its shortest decimal form, read back, is the same float32; as float64 it would show digits that mean nothing.
        shortest = np.array([float(str(number)) for number in array.ravel()], dtype=np.float64)
        array = shortest.reshape(array.shape)
    return _without_nan(array.tolist())


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return value if math.isfinite(value) else None

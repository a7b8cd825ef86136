"""Values become strict JSON, and back."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.metrics.json_values import to_json, write_json


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (torch.tensor([[1.0, math.nan], [math.inf, -2.5]]), [[1.0, None], [None, -2.5]]),
        (torch.tensor(0.1), 0.1),  # the shortest form of the float32, not 0.10000000149
        (torch.tensor([0.5], dtype=torch.bfloat16), [0.5]),
        (torch.tensor([True, False]), [True, False]),
        (torch.tensor([2**40]), [2**40]),
        (torch.zeros(0, 3), []),
        (np.float64("nan"), None),
        (np.arange(3), [0, 1, 2]),
        ({"a": (1, None, "x"), "b": -math.inf}, {"a": [1, None, "x"], "b": None}),
        ("ünïcode <script>", "ünïcode <script>"),
        (True, True),
    ],
)
def test_value(value: object, wanted: object) -> None:
    found = to_json(value)
    assert found == wanted
    assert json.loads(json.dumps(found, allow_nan=False)) == wanted


@given(st.lists(st.floats(width=32), max_size=20))
def test_float32_comes_back_as_it_was(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    back = json.loads(json.dumps(to_json(tensor), allow_nan=False))
    for number, original in zip(back, values, strict=True):
        assert number is None if not math.isfinite(original) else np.float32(number) == original


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1, 2}, "got set"),
        ({"a": [object()]}, r"report\['a'\]\[0\] must be made of"),
        ({1: 2}, "texts as keys"),
        (torch.zeros(2, dtype=torch.complex64), "must hold numbers"),
        (np.array(["x"]), "must hold numbers"),
    ],
)
def test_what_json_cannot_say(value: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        to_json(value, "report")


def test_file_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": None})
    assert json.loads(path.read_text()) == {"a": None}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": None}
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]

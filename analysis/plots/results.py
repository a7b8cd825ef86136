"""The JSON files of factorisation, similarity and pruning (docs/factorisation.md), as what pictures are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvcompress.analysis.plots.bins import Floats
from kvcompress.analysis.plots.problems import NothingToDrawError

Results = Mapping[str, Any]


def read_results(folder: Path, name: str) -> dict[str, Any]:
    """Reads ``tucker.json``, ``similarity.json`` or ``pruning.json``.

    Args:
        folder: where it lies.
        name: ``"tucker"``, ``"similarity"`` or ``"pruning"``.

    Raises:
        NothingToDrawError: there is none.
        ValueError: the file is damaged or something else.
    """
    path = folder / f"{name}.json"
    schema = f"kvcompress.{name}/1"
    if not path.is_file():
        command = {"pruning": "prune"}.get(name, name)
        raise NothingToDrawError(f"it needs {path}, which is not there; write it with `kvcompress {command}`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON; it cannot be read ({error}). Write it again.") from error
    if not isinstance(content, dict) or content.get("schema") != schema:
        got = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} must have the schema {schema!r}; it has {got!r}. Write it again with this version.")
    return content


def result_layers(results: Results) -> list[int]:
    """Numbers of the layers in ``tucker.json`` or ``similarity.json``, ascending.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return sorted({int(row["layer"]) for row in results["layers"]})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{results['schema']}: a layer has no number; the file is damaged. Write it again.") from error


def numbers(values: Any) -> Floats:
    """Nested lists of numbers as an array; null becomes NaN."""
    return np.array(values, dtype=np.float64)


def of_target(rows: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    """The rows of ``"keys"`` or of ``"values"``."""
    return [row for row in rows if row["target"] == target]

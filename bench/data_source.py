"""Where data come from: files, or the hub through the package datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

WIKITEXT: Final = "wikitext"


def hub_rows(repository: str, subset: str, split: str = "test") -> list[dict[str, Any]]:
    """Reads a data set of the hub, through its cache on disk where it has been read before.

    Args:
        repository: its id, such as ``"Salesforce/wikitext"``.
        subset: its configuration.
        split: which part of it.

    Raises:
        ImportError: the package ``datasets`` is not installed.
        ValueError: the data set cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"{repository} is read through the package datasets, which is not installed. "
            "Install kvcompress[datasets], or give a local file."
        ) from error
    try:
        return [dict(row) for row in load_dataset(repository, subset, split=split)]
    except Exception as error:  # network, hub, scripts that are no longer run, disk
        raise ValueError(
            f"{repository} ({subset}, {split}) cannot be read: {error}. Download it and give the local file."
        ) from error


def read_text(source: str | Path) -> str:
    """Reads a text.

    Args:
        source: a UTF-8 file, or ``"wikitext"`` for the test part of WikiText-2 (arXiv 1609.07843).

    Raises:
        ImportError: WikiText without the package ``datasets``.
        ValueError: the text cannot be read.
    """
    if source == WIKITEXT:
        rows = hub_rows("Salesforce/wikitext", "wikitext-2-raw-v1")
        return "".join(row["text"] for row in rows)
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} cannot be read ({error}). Give a UTF-8 text file, or {WIKITEXT!r}.") from error


def read_jsonl(path: Path) -> list[tuple[int, dict[str, object]]]:
    """Reads a file of one JSON object a line, with the lines' numbers; empty lines are left out.

    Args:
        path: the file, UTF-8.

    Raises:
        ValueError: it cannot be read, is empty, or a line is no object; the message names file and line.
    """
    rows: list[tuple[int, dict[str, object]]] = []
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} must be a JSON object; it is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must be a JSON object; got {type(row).__name__}")
        rows.append((number, row))
    if not rows:
        raise ValueError(f"{path} must hold one JSON object a line; it is empty")
    return rows


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Give a UTF-8 file of one JSON object a line.") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]

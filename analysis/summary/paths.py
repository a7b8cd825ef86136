"""Names of a capture's files."""

from __future__ import annotations

import re
from pathlib import Path

_SUMMARY = re.compile(r"attention_summary_sample_(0|[1-9]\d*)\.json")
_PARTIAL = re.compile(r"\.sample_(0|[1-9]\d*)\.partial")


def data_name(index: int) -> str:
    """Name of a sample's tensors."""
    return f"attention_data_sample_{index}.safetensors"


def summary_name(index: int) -> str:
    """Name of a sample's JSON."""
    return f"attention_summary_sample_{index}.json"


def partial_name(index: int) -> str:
    """Name of the folder that a sample is collected in."""
    return f".sample_{index}.partial"


def sample_indices(folder: Path) -> list[int]:
    """Numbers of the complete samples of a folder, ascending."""
    return _numbers(folder, _SUMMARY)


def partial_indices(folder: Path) -> list[int]:
    """Numbers of the samples of a folder that were begun and not completed, ascending."""
    return _numbers(folder, _PARTIAL)


def _numbers(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    if not folder.is_dir():
        return []
    found = (pattern.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match is not None)

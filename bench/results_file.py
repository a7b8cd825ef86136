"""The JSON of a benchmark run: where it was made, and its cases."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from kvcompress.analysis.files import replace_text

SCHEMA: Final = "kvcompress.bench/1"
PROJECT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = Path(__file__).resolve().parent / "results"


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code: commit, versions, device, processor, threads."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    gpu = torch.cuda.is_available()
    return {
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "driver": _nvidia_driver() if gpu else None,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "threads": torch.get_num_threads(),
        "cpu": _processor(),
    }


def results(
    cases: Sequence[Mapping[str, Any]],
    *,
    made_in: Mapping[str, Any],
    schema: str = SCHEMA,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A run's whole content.

    Args:
        cases: its rows.
        made_in: the :func:`environment`, asked before the run: a work tree may change while it lasts.
        schema: name and version of the rows' form.
        notes: what a reader must know to understand them.
    """
    return {"schema": schema, **made_in, **(notes or {}), "cases": list(cases)}


def write_results(content: Mapping[str, Any], path: Path) -> None:
    """Writes a run, one case a line, so that a reader never sees half a file.

    Args:
        content: what :func:`results` returned.
        path: the file; its folder is made if it is not there.
    """
    head = {key: value for key, value in content.items() if key != "cases"}
    lines = ",\n    ".join(json.dumps(case, allow_nan=False) for case in content["cases"])
    text = json.dumps(head, indent=2, allow_nan=False)[:-2] + ',\n  "cases": [\n    ' + lines + "\n  ]\n}\n"
    replace_text(path, text)


def _git(*arguments: str) -> str | None:
    """A git command's output, or None where the project is no work tree."""
    try:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _nvidia_driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Name of the processor and how many logical ones this process may use."""
    name = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} ({usable} logical)"

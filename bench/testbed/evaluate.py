"""Exact match per task and length: `python -m kvcompress.bench.testbed.evaluate [--model DIR]`."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import transformers
import typer

from kvcompress.analysis.intervals import wilson_interval
from kvcompress.bench.testbed.accuracy import count_correct
from kvcompress.bench.testbed.location import EVALUATION_FILE, MODEL_DIR, load_testbed
from kvcompress.bench.testbed.tasks import MAX_LENGTH, MIN_LENGTH, TASKS

DEFAULT_LENGTHS: Final = (128, 256, 512, 1024, 2048)
SCHEMA: Final = "kvcompress.testbed.evaluation/1"

_LOGGER = logging.getLogger(__name__)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cell(folder: Path, task: str, length: int, samples: int, seed: int) -> dict[str, Any]:
    """Evaluate one task at one length; run in a process of its own."""
    torch.set_num_threads(1)
    model, _ = load_testbed(folder=folder)
    started = time.monotonic()
    correct = count_correct(model, task, length, samples=samples, seed=seed)
    low, high = wilson_interval(correct, samples)
    return {
        "task": task,
        "length": length,
        "samples": samples,
        "correct": correct,
        "exact_match": correct / samples,
        "interval_95": [round(low, 4), round(high, 4)],
        "seconds": round(time.monotonic() - started, 1),
    }


def _check_request(samples: int, lengths: Sequence[int]) -> None:
    """Raise ValueError unless there is something to evaluate that the model can hold."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}; 200 is what headline figures use")
    if not lengths or min(lengths) < MIN_LENGTH or max(lengths) > MAX_LENGTH:
        raise ValueError(
            f"lengths must be in [{MIN_LENGTH}, {MAX_LENGTH}], got {list(lengths)}; "
            f"the default is {list(DEFAULT_LENGTHS)}"
        )


def evaluate_model(
    folder: Path, *, samples: int, lengths: Sequence[int], seed: int = 0, processes: int = 2
) -> dict[str, Any]:
    """Measure every task at every length, full cache, greedy decoding, float32 on the CPU.

    Args:
        folder: the model's folder.
        samples: examples of each task and length, at least 1.
        lengths: prompt lengths in ids.
        seed: which set of examples.
        processes: processes to share the work, one thread each.

    Returns:
        What `evaluation.json` holds: the model's SHA-256, versions, and one cell per task and length with the
        number of samples, how many were right, and the 95 % Wilson interval.

    Raises:
        ValueError: if there are no samples or a length is out of range.
    """
    _check_request(samples, lengths)
    jobs = [(task, length) for length in sorted(lengths) for task in TASKS]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_cell, folder, task, length, samples, seed) for task, length in jobs]
        cells = []
        for future in futures:
            cells.append(future.result())
            _LOGGER.info("%(task)s at %(length)d: %(correct)d of %(samples)d", cells[-1])
    order = list(TASKS)
    cells.sort(key=lambda cell: (order.index(cell["task"]), cell["length"]))
    return {
        "schema": SCHEMA,
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model_sha256": file_sha256(folder / "model.safetensors"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": "cpu",
        "dtype": "float32",
        "cache": "full",
        "decoding": "greedy",
        "seed": seed,
        "cells": cells,
    }


def write_evaluation(evaluation: dict[str, Any], path: Path) -> None:
    """Write an evaluation as JSON, one cell a line, and log a table of it.

    Args:
        evaluation: what `evaluate_model` returned.
        path: the file.
    """
    head = {key: value for key, value in evaluation.items() if key != "cells"}
    lines = ",\n    ".join(json.dumps(cell) for cell in evaluation["cells"])
    text = json.dumps(head, indent=2)[:-2] + ',\n  "cells": [\n    ' + lines + "\n  ]\n}\n"
    path.write_text(text, encoding="utf-8")
    for task in TASKS:
        row = [cell for cell in evaluation["cells"] if cell["task"] == task]
        _LOGGER.info("%-16s %s", task, "  ".join(f"{c['length']}: {100 * c['exact_match']:.1f}" for c in row))


def main(
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = MODEL_DIR,
    samples: Annotated[int, typer.Option(help="Examples per task and length.")] = 200,
    lengths: Annotated[str, typer.Option(help="Prompt lengths, with commas.")] = ",".join(map(str, DEFAULT_LENGTHS)),
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = EVALUATION_FILE,
) -> None:
    """Measure exact match of the full cache per task and length."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    evaluation = evaluate_model(model, samples=samples, lengths=[int(length) for length in lengths.split(",")])
    write_evaluation(evaluation, out)


if __name__ == "__main__":
    typer.run(main)

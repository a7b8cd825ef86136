"""Makes pytest-benchmark write a run like all others: `make bench BENCH_JSON=bench/results/hot_paths_cpu.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kvcompress.bench.results_file import environment, results


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Sequence[Any], output_json: dict[str, Any]) -> None:
    """Replaces the file's content by one that ``kvcompress bench compare`` reads."""
    clock = getattr(config.option.benchmark_timer, "__name__", str(config.option.benchmark_timer))
    notes = {"clock": "processor time" if "process_time" in clock else "wall time"}
    content = results([row_of(benchmark) for benchmark in benchmarks], made_in=environment(), notes=notes)
    output_json.clear()
    output_json.update(content)


def row_of(benchmark: Any) -> dict[str, Any]:
    """A case of the house's form; what the benchmark itself checks has no figure of its error."""
    low, median, high = np.quantile(np.array(benchmark.stats.data) * 1e3, (0.2, 0.5, 0.8))
    return {
        "case": benchmark.name.removeprefix("test_").split("[")[0],
        "shape": benchmark.param or "default",
        "dtype": "float32",
        "provider": "kvcompress",
        "unit": "ms",
        "median": float(median),
        "q20": float(low),
        "q80": float(high),
        "repeats": len(benchmark.stats.data),
    }

"""What `make bench` writes is a run like all others."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvcompress.bench.compare_runs import read_run
from kvcompress.bench.conftest import pytest_benchmark_update_json
from kvcompress.bench.results_file import RESULTS


def benchmark(name: str, param: str | None, seconds: list[float]) -> Any:
    return SimpleNamespace(name=name, param=param, stats=SimpleNamespace(data=seconds))


def test_json_can_be_compared(tmp_path: Path) -> None:
    content: dict[str, Any] = {"machine_info": {"node": "a name that concerns nobody"}}
    option = SimpleNamespace(benchmark_timer=SimpleNamespace(__name__="process_time"))
    measured = [
        benchmark("test_decode_step[ema]", "ema", [0.001, 0.002, 0.003]),
        benchmark("test_select", None, [0.004]),
    ]
    pytest_benchmark_update_json(SimpleNamespace(option=option), measured, content)  # type: ignore[arg-type]
    assert "machine_info" not in content
    assert content["clock"] == "processor time"
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    run = read_run(path)
    assert {(key.case, key.shape): timing.median for key, timing in run.rows.items()} == {
        ("decode_step", "ema"): pytest.approx(2.0),
        ("select", "default"): pytest.approx(4.0),
    }


def test_the_committed_run_holds_every_hot_path() -> None:
    source = (Path(RESULTS).parent / "bench_engine.py").read_text(encoding="utf-8")
    cases = {key.case for key in read_run(RESULTS / "hot_paths_cpu.json").rows}
    assert cases == {
        line.split("(")[0].removeprefix("def test_") for line in source.splitlines() if "def test_" in line
    }

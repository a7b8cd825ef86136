"""The measuring code: quantiles, ratios, refusal of wrong results, the JSON, the tables, memory, and the replay."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress import Cake, CompressedCache, SnapKV
from kvcompress.bench import measure as measuring
from kvcompress.bench.measure import Case, CaseRow, Contender, WrongResultError, measure, relative_error
from kvcompress.bench.one_layer import small_model
from kvcompress.bench.peak_memory import peak_memory
from kvcompress.bench.replay import next_logits, record_prefill, replay
from kvcompress.bench.results_file import SCHEMA, environment, results, write_results
from kvcompress.bench.tables import engine_speed, fill, render
from kvcompress.engine.cache_argument import cache_argument

CASE = Case(name="made_up", shape="none", ratio_to="a")

WANTED = {
    "schema", "commit", "dirty", "time_utc", "device", "driver", "torch", "triton", "transformers", "threads",
    "cpu", "cases",
}  # fmt: skip
WANTED_OF_CASE = {
    "case", "shape", "dtype", "provider", "unit", "median", "q20", "q80", "repeats", "bytes_moved",
    "peak_memory_bytes", "max_error", "ratio_to", "ratio",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _no_collection() -> Iterator[None]:
    """Collecting all of torch's objects takes a third of a second, and fake work leaves none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.gc, "collect", lambda: 0)
        yield


class FakeClock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def worker(self, seconds: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds()

        return run


def rows_of(seconds: dict[str, Callable[[], float]], repeats: int, **options: Any) -> dict[str, CaseRow]:
    clock = FakeClock()
    contenders = [Contender(provider=name, run=clock.worker(each), **options) for name, each in seconds.items()]
    return {row["provider"]: row for row in measure(CASE, contenders, repeats=repeats, clock=clock)}


@given(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=30))
def test_quantiles_are_those_of_the_samples(samples: list[float]) -> None:
    warm_up = [1.0] * 2
    source = iter(warm_up + samples)
    row = rows_of({"a": lambda: next(source)}, repeats=len(samples))["a"]
    wanted = np.quantile(np.array(samples) * 1e3, (0.2, 0.5, 0.8))
    assert (row["q20"], row["median"], row["q80"]) == pytest.approx(tuple(wanted))
    assert row["repeats"] == len(samples)
    assert row["unit"] == "ms"


@given(st.integers(0, 2**32 - 1))
def test_contender_against_itself_covers_one(seed: int) -> None:
    generator = np.random.default_rng(seed)
    noisy = lambda: float(generator.lognormal(0.0, 0.3))  # noqa: E731
    rows = rows_of({"a": noisy, "b": noisy}, repeats=64)
    assert rows["b"]["ratio_q20"] < 1 < rows["b"]["ratio_q80"]
    assert rows["a"]["ratio"] == rows["a"]["ratio_q20"] == rows["a"]["ratio_q80"] == 1


def test_ratio_is_taken_round_by_round() -> None:
    # The machine gets slower and slower; both suffer alike, so the ratio of each round is exactly 3.
    load = itertools.count(1)
    slow = itertools.count(1)
    rows = rows_of({"a": lambda: 2.0 ** (next(load) // 2), "b": lambda: 3 * 2.0 ** (next(slow) // 2)}, repeats=10)
    assert rows["b"]["ratio"] == pytest.approx(3)
    assert rows["b"]["ratio_q20"] == pytest.approx(3)


def test_contenders_take_turns_and_each_starts_a_round() -> None:
    order: list[str] = []
    clock = FakeClock()
    contenders = [Contender(provider=name, run=lambda name=name: order.append(name)) for name in "abc"]
    measuring.interleave(contenders, 3, clock)
    assert "".join(order) == "abc" + "bca" + "cab"


def test_time_is_per_call() -> None:
    assert rows_of({"a": lambda: 0.5}, repeats=3, calls=4)["a"]["median"] == pytest.approx(500)


@pytest.mark.parametrize("error", [2e-4, float("nan"), float("inf")])
def test_wrong_contender_is_refused_and_never_timed(error: float) -> None:
    calls: list[int] = []
    wrong = Contender(provider="a", run=lambda: calls.append(1), error=lambda: error, tolerance=1e-4)
    with pytest.raises(WrongResultError, match=r"a gives a wrong result in case 'made_up': max error .*1.000e-04"):
        measure(CASE, [wrong], repeats=1)
    assert calls == []


@pytest.mark.parametrize(
    ("names", "repeats", "message"),
    [("a", 0, "repeats"), ("aa", 1, "names of their own"), ("b", 1, "ratio_to")],
)
def test_request_that_makes_no_sense_is_named(names: str, repeats: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(CASE, [Contender(provider=name, run=int) for name in names], repeats=repeats)


def test_relative_error_is_relative_and_keeps_nan() -> None:
    reference = torch.tensor([0.0, -4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([1.0, -4.0]), reference) == 0.25
    assert np.isnan(relative_error(torch.tensor([float("nan"), -4.0]), reference))
    with pytest.raises(ValueError, match="shapes must agree"):
        relative_error(torch.zeros(1), reference)


def test_json_is_complete_and_replaces_what_was_there(tmp_path: Path) -> None:
    rows = list(rows_of({"a": lambda: 1.0, "b": lambda: 2.0}, repeats=2).values())
    path = tmp_path / "deep" / "run.json"
    write_results(results(rows[:1], made_in=environment()), path)
    write_results(results(rows, made_in=environment()), path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content) >= WANTED
    assert content["schema"] == SCHEMA
    assert [set(case) >= WANTED_OF_CASE for case in content["cases"]] == [True, True]
    assert content["cases"] == rows
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]


def test_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_results(results([], made_in={}), path)
    before = path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(results([{"median": float("nan")}], made_in={}), path)
    assert path.read_text(encoding="utf-8") == before
    assert len(list(tmp_path.iterdir())) == 1


def test_peak_memory_counts_temporaries_at_their_worst_moment() -> None:
    size = 1 << 20

    def work() -> torch.Tensor:
        first = torch.zeros(size)
        second = first + 1  # both live: 8 MiB
        del first
        return second + 1  # second and the result

    for _ in range(2):
        assert peak_memory(work) == pytest.approx(8 * size, rel=0.01)


def test_filling_tables_is_idempotent_and_keeps_the_rest() -> None:
    text = "# Title\n<!-- table:x -->\nold\n<!-- /table:x -->\nbetween\n<!-- table:y -->\n<!-- /table:y -->\nend\n"
    tables = {"x": "| x |\n", "y": "| y |\n"}
    once = fill(text, tables.__getitem__)
    assert "old" not in once
    assert once.startswith("# Title\n<!-- table:x -->\n\n| x |\n")
    assert "\nbetween\n" in once
    assert once.endswith("<!-- /table:y -->\nend\n")
    assert fill(once, tables.__getitem__) == once


def test_marker_without_end_and_unknown_table_are_named() -> None:
    with pytest.raises(ValueError, match="opened"):
        fill("<!-- table:x -->\nrest\n", str)
    with pytest.raises(ValueError, match="table must be one of engine_speed"):
        render("nothing")


def test_engine_table_has_a_row_per_contender() -> None:
    rows = list(rows_of({"a": lambda: 1.0, "b": lambda: 2.0}, repeats=2).values())
    lines = engine_speed(results(rows, made_in={})).splitlines()
    assert lines[2].startswith("| made_up | none | a | 1000 [1000, 1000] | 1 |")
    assert lines[3].startswith("| made_up | none | b | 2000 [2000, 2000] | 2.00 |")


@pytest.mark.parametrize("policy", [Cake(cache_size=24, window_size=4), SnapKV(cache_size=24, window_size=4)])
def test_replayed_prefill_leaves_the_state_of_a_real_one(policy: Cake | SnapKV) -> None:
    model = small_model(query_heads=4, kv_heads=2, head_dim=16, layers=3)
    prompts = torch.randint(64, (3, 70))
    replayed, real = replay(model, record_prefill(model, prompts), policy), CompressedCache(model, policy)
    with torch.inference_mode():
        logits = model(input_ids=prompts, **cache_argument(real)).logits[:, -1]
    ids = logits.argmax(-1)
    for layer in range(3):
        assert torch.equal(replayed.kept_positions(layer), real.kept_positions(layer))
    for _ in range(6):
        wanted = next_logits(model, real, ids)
        assert torch.equal(next_logits(model, replayed, ids), wanted)
        ids = wanted.argmax(-1)

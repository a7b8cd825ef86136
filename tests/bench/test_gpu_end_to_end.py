"""The end-to-end benchmark on a tiny model: its figures, its limits, and what it does when a contender cannot run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import PreTrainedModel
from typer.testing import CliRunner

import kvcompress.bench.gpu_end_to_end as end_to_end
from kvcompress.bench import measure as measuring
from kvcompress.bench.compare_runs import read_run
from kvcompress.bench.end_to_end_model import MODEL_SHAPES, flops, make_model, step_bytes
from kvcompress.bench.gpu_end_to_end import TimeLimit, describe, run_shape
from kvcompress.bench.timed_generation import contenders, generate, prompt_of

CPU = torch.device("cpu")
TINY = MODEL_SHAPES["tiny"]
BANDWIDTH = 1e9


@pytest.fixture(scope="module", autouse=True)
def _no_collection() -> Iterator[None]:
    """Collecting all of torch's objects takes a third of a second for each contender."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.gc, "collect", lambda: 0)
        yield


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model(TINY, CPU)


def rows(limit: TimeLimit | None = None) -> list[dict[str, Any]]:
    return list(run_shape(TINY, CPU, limit or TimeLimit(600), BANDWIDTH))


def test_each_cell_has_both_figures_of_both_caches_and_says_why_the_third_is_missing() -> None:
    found = rows()
    cells = {row["shape"] for row in found}
    assert len(cells) == len(TINY.lengths) * len(TINY.batches)
    for cell in cells:
        here = [(row["case"], row["provider"]) for row in found if row["shape"] == cell]
        assert sorted(here) == [
            ("decode_step", "cake"), ("decode_step", "dynamic_cache"), ("generate", "cake_cuda_graph"),
            ("time_to_first_token", "cake"), ("time_to_first_token", "dynamic_cache"),
        ]  # fmt: skip
    reasons = {row["reason"] for row in found if "reason" in row}
    assert reasons == {"CUDA graphs need a GPU"}
    assert all(describe(row) for row in found)


def test_limit_is_bytes_by_bandwidth(model: PreTrainedModel) -> None:
    steps = [row for row in rows() if row["case"] == "decode_step"]
    embedding = TINY.vocabulary * TINY.hidden * 4
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    for row in steps:
        assert row["bytes_moved"] == weights - embedding + row["cache_bytes"] == step_bytes(model, row["cache_bytes"])
        batch = int(row["shape"].split("B=")[1].split(",")[0])
        assert row["limit_tokens_per_second"] == pytest.approx(batch * BANDWIDTH / row["bytes_moved"])
        assert row["tokens_per_second"] == pytest.approx(1e3 * batch / row["median"])
        assert row["share_of_bandwidth"] == pytest.approx(row["tokens_per_second"] / row["limit_tokens_per_second"])
    full, cake = (
        [row["cache_bytes"] for row in steps if row["provider"] == name] for name in ("dynamic_cache", "cake")
    )
    # Keys and values of 2 layers and 2 heads of 16 in float32: of all tokens but the last one, which is never decoded.
    assert full[0] == 2 * 2 * 2 * 16 * 4 * (min(TINY.lengths) + TINY.new_tokens - 1)
    assert all(less < more for less, more in zip(cake, full, strict=True))


def test_first_token_is_the_full_caches(model: PreTrainedModel) -> None:
    prompt = prompt_of(TINY, max(TINY.lengths), 2, CPU)
    made = {name: make for name, make in contenders(model, TINY) if callable(make)}
    full, cake = (generate(model, prompt, made[name](), 5) for name in ("dynamic_cache", "cake"))
    assert [ids[0] for ids in full.ids] == [ids[0] for ids in cake.ids]
    assert [len(ids) for ids in full.ids] == [5, 5]
    assert len(full.step_seconds) == 4
    assert full.peak_bytes is None


def test_full_cache_runs_on_the_model_as_it_was(model: PreTrainedModel) -> None:
    made = {name: make for name, make in contenders(model, TINY) if callable(make)}
    made["cake"]()
    assert model.config._attn_implementation != "sdpa"
    made["dynamic_cache"]()
    assert model.config._attn_implementation == "sdpa"


def test_out_of_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    right = end_to_end.generate

    def too_large(model: PreTrainedModel, prompt: torch.Tensor, cache: Any, new_tokens: int) -> Any:
        if type(cache).__name__ == "DynamicCache" and prompt.shape == (2, max(TINY.lengths)):
            raise torch.OutOfMemoryError("no")
        return right(model, prompt, cache, new_tokens)

    monkeypatch.setattr(end_to_end, "generate", too_large)
    found = rows()
    (lost,) = [row for row in found if row.get("reason") == "out of memory"]
    assert lost["provider"] == "dynamic_cache"
    assert lost["shape"].startswith(f"tiny, B=2, {max(TINY.lengths)} tokens")
    after = [row for row in found if row["shape"] == lost["shape"] and row["case"] == "decode_step"]
    assert [row["provider"] for row in after] == ["cake"]


class TestTimeLimit:
    def test_learns_from_what_was_measured(self) -> None:
        limit = TimeLimit(100, clock=lambda: 0.0)
        limit.learn(work=1e12, first_seconds=10)
        assert limit.refusal(work=9e12, steps=0) is None
        reason = limit.refusal(work=2e13, steps=0)
        assert reason == "would take about 200 s, and 100 s of the 100 s are left"

    def test_counts_what_has_passed_and_the_steps(self) -> None:
        now = [0.0]
        limit = TimeLimit(100, clock=lambda: now[0])
        assert limit.refusal(work=0, steps=1000) is None
        now[0] = 50.0
        assert limit.refusal(work=0, steps=1000) is not None

    def test_what_does_not_fit_is_a_row(self) -> None:
        found = rows(TimeLimit(0))
        assert {row["case"] for row in found} == {"generate"}
        reasons = [row["reason"] for row in found if row["provider"] != "cake_cuda_graph"]
        assert all("are left" in reason for reason in reasons)


def test_work_is_twice_the_weights_per_token_and_grows_with_the_prompt() -> None:
    shape = MODEL_SHAPES["llama-3.1-8b"]
    assert flops(shape, 1, 1) == pytest.approx(2 * 6.98e9, rel=0.01)  # 8.03e9 less embedding and head
    assert flops(shape, 131072, 1) / flops(shape, 8192, 1) > 16
    assert flops(shape, 8192, 4) == 4 * flops(shape, 8192, 1)


def test_command_writes_a_run_that_can_be_compared(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(end_to_end.main)
    out = tmp_path / "run.json"
    result = CliRunner().invoke(app, ["--shape", "tiny", "--out", str(out)])
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["copy_bandwidth_bytes_per_second"] > 0
    assert content["complete"]
    assert len(read_run(out).rows) == 16


def test_what_was_measured_is_there_when_a_later_cell_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = end_to_end.generate

    def fails_at_last(model: PreTrainedModel, prompt: torch.Tensor, cache: Any, new_tokens: int) -> Any:
        if prompt.shape == (2, max(TINY.lengths)):
            raise RuntimeError("the device is gone")
        return right(model, prompt, cache, new_tokens)

    monkeypatch.setattr(end_to_end, "generate", fails_at_last)
    app = typer.Typer()
    app.command()(end_to_end.main)
    out = tmp_path / "run.json"
    result = CliRunner().invoke(app, ["--shape", "tiny", "--out", str(out)])
    assert "the device is gone" in str(result.exception)
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["complete"] is False
    assert len(content["cases"]) >= 5
    assert len(read_run(out).rows) == sum("median" in row for row in content["cases"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_large_model_without_a_gpu_is_refused_in_one_line() -> None:
    app = typer.Typer()
    app.command()(end_to_end.main)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "needs a CUDA device" in result.stderr


@pytest.mark.gpu
def test_all_three_contenders_run_on_the_gpu() -> None:
    found = list(run_shape(TINY, torch.device("cuda"), TimeLimit(600), 1e12))
    assert not [row for row in found if "reason" in row]
    graph = [row for row in found if row["provider"] == "cake_cuda_graph" and row["case"] == "decode_step"]
    assert all(row["tokens_equal_to_cake"] == 1.0 for row in graph)
    assert all(row["peak_memory_bytes"] > row["cache_bytes"] for row in graph)

"""Cells on the embedded model: what a sweep consists of, and what is measured of each, against independent sums."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from kvcompress import CompressedCache, SnapKV
from kvcompress.bench.sweep.closeness import closeness, full_answers
from kvcompress.bench.sweep.grid import Grid, cells_of, samples_of
from kvcompress.bench.sweep.identity import model_digest
from kvcompress.bench.sweep.policy_text import parse_policy
from kvcompress.bench.sweep.row import Cell, Row
from kvcompress.bench.sweep.runner import Runner, explained
from kvcompress.bench.tasks.registry import make_task
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.errors import CacheStateError

SIZE = 48
GRID: dict[str, Any] = {
    "policies": [parse_policy("snapkv:window_size=8:decode=accumulate"), parse_policy("random")],
    "cache_sizes": [SIZE],
    "ratios": [],
    "tasks": ["variables_2"],
    "lengths": [128],
    "modes": ["query_aware", "query_agnostic"],
    "samples": 6,
    "fidelity_samples": 4,
    "seed": 0,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(load_testbed, batch_size=4)


@pytest.fixture(scope="module")
def cells(runner: Runner) -> list[Cell]:
    return cells_of(Grid(**GRID), "embedded", runner.model, runner.tokenizer)


@pytest.fixture(scope="module")
def rows(runner: Runner, cells: list[Cell]) -> list[Row]:
    return [runner.run(cell) for cell in cells]


class TestGrid:
    def test_full_cache_comes_first_in_every_group(self, cells: list[Cell]) -> None:
        assert [cell.policy.split(":")[0] for cell in cells] == ["full", "snapkv", "random"] * 2
        assert [cell.cache_size for cell in cells[:3]] == [None, SIZE, SIZE]
        assert len(set(cells)) == len(cells)

    def test_full_alone_needs_no_budget_and_comes_once(self) -> None:
        full = [parse_policy("full")] * 2
        assert len(Grid(**{**GRID, "policies": full, "cache_sizes": []}).contenders()) == 1

    @pytest.mark.parametrize(
        "change",
        [{"seed": 1}, {"samples": 5}, {"fidelity_samples": 2}, {"lengths": [64]}, {"cache_sizes": [64]}],
    )
    def test_another_definition_is_another_cell(
        self, runner: Runner, cells: list[Cell], change: dict[str, object]
    ) -> None:
        others = cells_of(Grid(**{**GRID, **change}), "embedded", runner.model, runner.tokenizer)
        same = set(cells) & set(others)
        assert {cell.policy for cell in same} <= ({"full"} if "cache_sizes" in change else set())

    def test_another_model_is_another_cell_whatever_its_name(self, runner: Runner) -> None:
        other, _ = load_testbed()
        assert model_digest(other) == runner.digest
        with torch.no_grad():
            other.lm_head.weight[0, 0] += 1
        assert model_digest(other) != runner.digest
        assert model_digest(load_testbed(torch.bfloat16)[0]) != runner.digest

    def test_seeds_share_no_samples(self, runner: Runner) -> None:
        task = make_task("variables_2")
        first, second = (samples_of(task, runner.tokenizer, 128, 5, seed) for seed in (0, 1))
        assert not {sample.context for sample in first} & {sample.context for sample in second}

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"cache_sizes": [8]}, "'random' cannot run at cache_size=8"),
            ({"cache_sizes": []}, "needs budgets"),
            ({"ratios": [1.0]}, "compression_ratio"),
            ({"tasks": ["needle"]}, "task must be one of"),
            ({"modes": ["aware"]}, "mode must be one of"),
            ({"lengths": []}, "lengths must name at least one"),
            ({"samples": 0}, "samples and fidelity_samples must be at least 1"),
        ],
    )
    def test_what_cannot_run_is_refused_before_a_model_is_there(self, change: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            Grid(**{**GRID, **change})

    def test_length_that_a_task_cannot_have_is_refused(self, runner: Runner) -> None:
        with pytest.raises(ValueError, match="'variables_2' cannot run at length 5: length must be in"):
            cells_of(Grid(**{**GRID, "lengths": [5]}), "embedded", runner.model, runner.tokenizer)


class TestRunner:
    def test_full_cache_agrees_with_itself_and_answers(self, rows: list[Row]) -> None:
        for row in rows[::3]:
            assert row.kl < 1e-9
            assert row.top1 == 1.0
            assert row.score == 1.0
            assert set(row.layer_tokens) == {128.0 + 2}  # the prompt, and an answer of three without its last

    def test_compressed_caches_hold_their_budget_and_fewer_bytes(self, rows: list[Row]) -> None:
        for row in rows[1::3]:
            assert row.layer_tokens == pytest.approx([SIZE] * 6, abs=1)
            assert 0.3 < row.kv_bytes / rows[0].kv_bytes < 0.45
            assert row.kl > 0

    def test_figures_are_what_their_scores_say(self, rows: list[Row]) -> None:
        for row in rows:
            assert len(row.scores) == 6
            assert row.score == pytest.approx(sum(row.scores) / 6)
            assert row.ci95 is not None
            assert row.ci95[0] <= row.score <= row.ci95[1]
            low, high = row.tokens_per_second_ci95
            assert 0 < low <= row.tokens_per_second <= high
            assert row.ttft > 0
            assert row.peak_bytes > row.kv_bytes  # keys and values of the prompt are there before they are dropped

    def test_second_run_gives_the_same(self, cells: list[Cell], rows: list[Row]) -> None:
        again = Runner(load_testbed, batch_size=4)
        for place in (5, 1):  # in another order, by another process's model
            row = again.run(cells[place])
            for name in ("scores", "kl", "top1", "kv_bytes", "layer_tokens"):
                assert getattr(row, name) == getattr(rows[place], name), name

    def test_batches_are_told(self, runner: Runner, cells: list[Cell]) -> None:
        told: list[int] = []
        runner.run(cells[2], told.append)
        assert told == [4, 2]

    def test_cell_of_another_model_is_refused(self, runner: Runner, cells: list[Cell]) -> None:
        with pytest.raises(ValueError, match="Every process must load the same weights"):
            runner.run(replace(cells[0], model_digest="0" * 16))

    def test_no_batch_is_refused(self) -> None:
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            Runner(load_testbed, batch_size=0)

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (MemoryError(), "the cell x does not fit into the memory.*finished rows are kept"),
            (torch.OutOfMemoryError("CUDA out of memory"), "does not fit"),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "does not fit"),
            (CacheStateError("a rule."), "the cell x cannot run: a rule. Finished rows are kept"),
        ],
    )
    def test_want_of_memory_and_refusals_say_which_cell(self, error: Exception, words: str) -> None:
        with pytest.raises(ValueError, match=words), explained("the cell x"):
            raise error

    def test_fault_of_the_program_stays_one(self) -> None:
        with pytest.raises(RuntimeError, match="shapes"), explained("the cell x"):
            raise RuntimeError("shapes")


@pytest.mark.parametrize("mode", ["query_aware", "query_agnostic"])
def test_closeness_is_the_divergence_of_what_both_caches_predict(runner: Runner, mode: str) -> None:
    """Against a float64 model without batches, padding or a cache of its own for the full predictions."""
    model: Any = runner.model
    exact: LlamaForCausalLM = load_testbed(torch.float64)[0]
    samples = samples_of(make_task("variables_2"), runner.tokenizer, 96, 3, 0)
    policy = SnapKV(cache_size=24, window_size=8)
    answers = full_answers(model, lambda: DynamicCache(config=model.config), samples, mode, 2)
    found = closeness(model, lambda: CompressedCache(model, policy), answers, mode)
    divergences, same = [], []
    with torch.inference_mode():
        for sample, answer in zip(samples, torch.cat([part.ids for part in answers]), strict=True):
            context, question = torch.tensor([sample.context_ids]), torch.tensor([sample.turns[0].question_ids])
            everything = torch.cat([context, question, answer[None]], dim=1)
            full = exact(everything).logits[0, -len(answer) - 1 :]
            assert torch.equal(full[:-1].argmax(-1), answer)
            cache = CompressedCache(exact, policy)
            blocks = [torch.cat([context, question], dim=1)] if mode == "query_aware" else [context, question]
            blocks += [token[None, None] for token in answer]
            logits = [exact(block, **cache_argument(cache)).logits[0, -1] for block in blocks]
            got = torch.stack(logits[-len(answer) - 1 :])
            if mode == "query_aware":
                full, got = full[1:], got[1:]
            wanted, given = (torch.distributions.Categorical(logits=table) for table in (full, got))
            divergences.append(torch.distributions.kl_divergence(wanted, given).mean())
            same.append((full.argmax(-1) == got.argmax(-1)).double().mean())
    assert found.kl == pytest.approx(float(torch.stack(divergences).mean()), rel=1e-3, abs=1e-6)
    assert found.top1 == pytest.approx(float(torch.stack(same).mean()))
    assert found.kl > 0.01  # something was lost

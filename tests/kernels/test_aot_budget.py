"""Limits and budget of the ahead-of-time check: what outgrows them is named, and nothing else is."""

from dataclasses import replace
from pathlib import Path

import pytest

from kvcompress.kernels import aot_budget
from kvcompress.kernels.aot_budget import Budget, over_budget, over_limits, read_budget, updated, write_budget
from kvcompress.kernels.aot_compile import Outcome
from kvcompress.kernels.tiles import ARCHITECTURES
from tests.kernels.aot_examples import outcome


class TestLimits:
    @pytest.mark.parametrize("target", ARCHITECTURES)
    def test_shared_memory_up_to_the_limit(self, target: str) -> None:
        limit = aot_budget.SHARED_LIMIT[target]
        assert list(over_limits([outcome(target, shared=limit)])) == []
        (line,) = over_limits([outcome(target, shared=limit + 1)])
        assert f"{limit + 1} bytes of shared memory, and {target} has {limit}" in line

    @pytest.mark.parametrize(
        ("resources", "lines"), [({"stack": 48}, 0), ({"stack": 56}, 1), ({"spills": 1}, 1), ({"registers": 255}, 0)]
    )
    def test_stack_and_spills(self, resources: dict[str, int], lines: int) -> None:
        assert len(list(over_limits([outcome(**resources)]))) == lines

    @pytest.mark.parametrize(("stack", "lines"), [(288, 0), (296, 1)])
    def test_more_stack_where_nothing_is_aligned(self, stack: int, lines: int) -> None:
        found = outcome(stack=stack)
        assert len(list(over_limits([replace(found, job=replace(found.job, aligned=False))]))) == lines


class TestBudget:
    BUDGET = Budget(triton="3.7.1", entries={"shift/shift_kernel": {"N128": {"sm90/aligned": (64, 1024)}}})

    @pytest.mark.parametrize(
        ("resources", "excess"),
        [
            ({}, None),
            ({"registers": 32, "shared": 0}, None),
            ({"registers": 72}, None),
            ({"registers": 73}, "73 registers, and the budget is 64 (+8 of slack)"),
            ({"shared": 1025}, "1025 bytes of shared memory, and the budget is 1024"),
        ],
    )
    def test_excess_is_reported(self, resources: dict[str, int], excess: str | None) -> None:
        lines = list(over_budget([outcome(**resources)], self.BUDGET))
        assert lines == ([f"shift/shift_kernel [N128] sm90/aligned: {excess}"] if excess else [])

    @pytest.mark.parametrize("unknown", [outcome("sm80"), outcome(block=256)])
    def test_missing_entry_is_reported(self, unknown: Outcome) -> None:
        (line,) = over_budget([unknown], self.BUDGET)
        assert line.endswith("not in the budget; run: make aot ARGS=--update-budget")

    def test_part_of_a_run_changes_its_part_only(self) -> None:
        found = updated(self.BUDGET, [outcome(registers=80), outcome("sm80")], "3.7.1", whole=False)
        assert found.entries["shift/shift_kernel"]["N128"] == {"sm90/aligned": (80, 1024), "sm80/aligned": (64, 1024)}
        assert self.BUDGET.entries["shift/shift_kernel"]["N128"] == {"sm90/aligned": (64, 1024)}

    def test_whole_run_drops_what_it_did_not_compile(self) -> None:
        run = [outcome(block=256)]
        assert aot_budget.stale_entries(run, self.BUDGET) == ["shift/shift_kernel [N128]"]
        found = updated(self.BUDGET, run, "3.9.0+git1", whole=True)
        assert found == Budget(triton="3.9.0", entries={"shift/shift_kernel": {"N256": {"sm90/aligned": (64, 1024)}}})

    def test_versions_are_not_mixed(self) -> None:
        with pytest.raises(ValueError, match=r"of Triton 3\.7\.1 and this is 3\.9\.0: a part of it cannot be updated"):
            updated(self.BUDGET, [outcome()], "3.9.0", whole=False)

    def test_written_budget_is_read_back(self, tmp_path: Path) -> None:
        path = tmp_path / "budget.json"
        budget = updated(self.BUDGET, [outcome(block=256), outcome("gfx942")], "3.7.1", whole=False)
        write_budget(budget, path)
        assert read_budget(path) == budget
        assert len(path.read_text().splitlines()) == 10, "one line per case"

    def test_missing_file_is_an_empty_budget(self, tmp_path: Path) -> None:
        assert read_budget(tmp_path / "none.json") == Budget(triton="")
